"""A model's cost in percent of another's: what is drawn is the ratio, here and as printed."""

import pytest

import probe
from probe import plots
from probe.measures.cost import join


def test_ratios_here_and_in_the_paper():
    costs = [
        probe.cost(model, name=f"{model} {side}", resolution=side)
        for model in ("tiny-llava", "tiny-llava-mini")
        for side in (60, 120)
    ]
    plain, plain_larger, mini, mini_larger = (float(one["flops"].sum()) for one in costs)
    axis = plots.relative_cost(join(costs))
    here, printed = (line.get_xdata() for line in axis.lines[:2])
    assert here == pytest.approx([100 * mini / plain, 100 * mini_larger / plain_larger])
    assert printed == pytest.approx([22.9, 17.8], abs=0.05)  # 1.96 of 8.55, 7.19 of 40.49
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        "operations",
        "operations, twice the side",
    ]
    with pytest.raises(probe.ProbeError, match="costs of two models"):
        plots.relative_cost(join(costs[:2]))
