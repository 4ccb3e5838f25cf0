"""Figures of dropping: what they show is what was planted."""

# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from planted_sweeps import planted_run, planted_sweep

from probe import plots
from probe.errors import ProbeError


def points(axis, filled: bool) -> set[float]:
    """x of the points that are filled, or hollow."""
    found = set()
    for line in axis.lines:
        if (
            line.get_linestyle() == "None"
            and len(line.get_xdata())
            and line.get_marker() not in ("", "_", "None")
        ):
            hollow = line.get_markerfacecolor() == "white"
            found |= set(np.asarray(line.get_xdata(), float)) if hollow is not filled else set()
    return found


def test_fig_5_marks_exactly_the_layers_that_are_needed():
    axis = plots.dropped(planted_sweep(needed=(1, 2), images=16), size=1)
    assert points(axis, filled=True) == {2, 3}
    assert points(axis, filled=False) == {1, 4}
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "2", "3", "4"]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["untouched", "no vision", "another image", "vision dropped (mask)"]


@pytest.mark.parametrize("value", ["kl", "total_variation", "first_token_changed"])
def test_a_distance_that_cannot_be_below_zero_is_never_significant(value):
    run = planted_run(needed=(1, 2))
    table = run["mask"].to_dataset()
    run["mask"] = table.assign({value: abs(table["kl"]) + 1e-6})
    for axis in (plots.dropped(run, "mask", 1, value), plots.readings(run, 1, "kl")):
        assert points(axis, filled=True) == set()
        assert len(points(axis, filled=False)) >= 4
        assert "cannot be below 0" in axis.figure._supxlabel.get_text().replace("\n", " ")
        assert "filled" not in axis.figure._supxlabel.get_text()


def test_one_image_gives_no_bands_and_the_caption_claims_none():
    said = {}
    for images in (1, 16):
        axis = plots.dropped(planted_sweep(needed=(1, 2), images=images), size=1)
        said[images] = " ".join(axis.figure._supxlabel.get_text().split())
    assert "on one image, which gives no bands" in said[1] and "95 %" not in said[1]
    assert "on 16 images; 95 % bands" in said[16]


def test_fig_5_has_attention_beside_it_where_a_run_has_it():
    axis = plots.dropped(planted_run())
    axes = axis.figure.axes
    assert len(axes) == 3 and axes[0] is axis
    assert axes[1].lines[0].get_ydata()[0] == pytest.approx(0.6)
    assert isinstance(plots.dropped(planted_run(), ax=plt.subplots()[1]), plt.Axes)


def test_no_panel_is_empty_where_words_read_the_image_elsewhere():
    """By cross-attention: the LLM's layers have no attention on vision."""
    run = planted_run()
    attention = run["attention"].to_dataset()
    run["attention"] = xr.DataTree(attention.where(False))
    assert len(plots.dropped(run).figure.axes) == 1


def test_a_run_opened_by_xarray_alone_draws_the_same_figure(tmp_path):
    """Strings of any length come back from a zarr store as numpy's own string type."""
    run = planted_run()
    for node in run.subtree:
        table = node.to_dataset(inherit=False)
        texts = {name: x.astype(object) for name, x in table.items() if x.dtype.kind == "U"}
        node.dataset = table.assign(texts)
    run.to_zarr(tmp_path / "final.zarr")
    opened = xr.open_datatree(tmp_path / "final.zarr", engine="zarr").load()
    assert opened["image"].dtype == np.dtypes.StringDType()
    drawn = [plots.dropped(of).figure.axes for of in (run, opened)]
    for own, theirs in zip(*drawn, strict=True):
        for line, other in zip(own.lines, theirs.lines, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), other.get_ydata())


def test_every_reading_is_on_one_axis():
    axis = plots.readings(planted_run())
    labels = {text.get_text() for text in axis.get_legend().get_texts()}
    assert {"mask", "zero", "swap", "untouched"} <= labels
    assert "not a finding" in " ".join(
        text.get_text() for text in _texts(plots.readings(planted_run(toy="true")))
    )


def _texts(axis):
    return [axis.figure._supxlabel]


def test_swaps_show_whose_answer_is_given():
    axis = plots.swaps(planted_run(needed=(0,)), size=1)
    assert points(axis, filled=True) == {1}


def test_depth_has_a_line_a_kind_and_ends_untouched():
    since, until = plots.depth(planted_sweep(needed=(2,))).axes
    assert {line.get_label() for line in since.lines} == {"colour", "count", "all"}
    everything = {axis: axis.lines[-1].get_ydata().tolist() for axis in (since, until)}
    assert everything[since] == [25, 25, 25, 100, 100]
    assert everything[until] == [100, 100, 100, 25, 25]


def test_all_figures_of_a_run_and_none_that_it_has_no_cases_for():
    assert set(plots.drop_figures(planted_run())) == {"dropped", "readings", "swaps", "depth"}
    run = planted_run(cases=[[0, 1], [2, 3]])
    assert set(plots.drop_figures(run)) == {"dropped", "readings", "swaps"}
    assert plt.get_fignums() == []


def test_without_scores_the_distance_is_drawn():
    run = planted_run()
    for name in ("mask", "zero", "swap"):
        table = run[name].to_dataset()
        table["correct"] = table["correct"] * np.nan
        run[name] = table.assign(total_variation=table["kl"] / 2)
    assert "variation" in plots.drop_figures(run)["dropped"].axes[0].get_ylabel()


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda: plots.dropped(planted_sweep(cases=[[0, 2]])), "windows"),
        (lambda: plots.readings(planted_sweep(), 7), "windows of 7 layers"),
        (lambda: plots.dropped(planted_run(), "fog"), "a mode of mask, zero, swap"),
        (lambda: plots.dropped(planted_run(), value="luck"), "a value of"),
        (lambda: plots.swaps(planted_sweep()), "mode='swap'"),
        (lambda: plots.depth(planted_sweep(cases=[[1]])), "from_layer"),
        (lambda: plots.dropped("run"), "drop_sweep"),
    ],
)
def test_a_mistake_is_one_line(draw, told):
    with pytest.raises(ProbeError, match=told):
        draw()
