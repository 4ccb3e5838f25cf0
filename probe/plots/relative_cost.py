"""What a model costs relative to another, beside what the paper prints for LLaVA-Mini.

    plots.relative_cost(costs)      # the second model in `costs`, in percent of the first

Costs of models of different sizes can be compared as ratios: operations and time of LLaVA-Mini are
printed in percent of LLaVA-v1.5's. Source: arXiv 2501.03895, Tables 13 and 14.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probe.errors import ProbeError
from probe.plots.arguments import require
from probe.plots.style import caption, finish, legend, looks, panels, styled
from probe.records.published import published

_CALLED = "plots.relative_cost"
OPERATIONS = "operations"
LARGER = "operations, twice the side"
TIME = "time to the first token"
_GPUS = ("rtx3090", "a100", "a800")


@styled()
def relative_cost(costs: xr.Dataset, *, ax: Any = None) -> Axes:
    """Operations and time of the second model in percent of the first; published ones are hollow.

    How to read it: left of 100 % the second model is cheaper. An image of twice the side has a row
    where both models were counted on one. Published times are of three GPUs, so there are three.

    Raises ProbeError for costs of fewer than two models.
    """
    costs = require(costs, "flops", _CALLED, "what probe.cost returns")
    models = [str(name) for name in dict.fromkeys(costs["model"].values)]
    if len(models) < 2:
        raise ProbeError(_CALLED, expected="costs of two models", got=models[0])
    base, model = models[:2]
    found = {row: _percent(costs, base, model, row) for row in (OPERATIONS, LARGER, TIME)}
    rows = [row for row, value in found.items() if not np.isnan(value)]
    printed = _published()
    axis = panels(ax, 1, 1, (6.4, 1.9 + 0.5 * len(rows)), _CALLED)[0, 0]
    look = looks([model])[model]
    points = [(value, place) for place, row in enumerate(rows) for value in printed[row]]
    dot = {"linestyle": "", "color": look.color, "marker": look.marker, "markersize": 9}
    axis.plot([found[row] for row in rows], range(len(rows)), label="here", **dot)
    hollow = dot | {"markerfacecolor": "none", "markersize": 7}
    axis.plot(*np.transpose(points), label="published: LLaVA-Mini", **hollow)
    axis.axvline(100, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(0, 1.08 * max(100.0, *(found[row] for row in rows)))
    finish(axis, f"Cost of {model}", xlabel=f"% of {base}")
    legend(axis, loc="center left", bbox_to_anchor=(1.01, 0.5))
    device = costs["device"].values[costs["model"].values == model][0]
    timed = [f"time here on {device}"] if TIME in rows else []
    notes = [
        "operations counted, attention's own products included",
        *timed,
        "published: in percent of LLaVA-v1.5-7B, arXiv 2501.03895, Tables 13 (RTX 3090, A100, "
        "A800) and 14",
    ]
    toys = zip(costs["model"].values, costs["toy"].values, strict=True)
    caption(
        axis, notes, {str(name): xr.Dataset(attrs={"toy": toy}) for name, toy in toys}, ax is None
    )
    return axis


def _percent(costs: xr.Dataset, base: str, model: str, row: str) -> float:
    """Of the models' first cases, or of those with twice their height; NaN where one lacks it."""
    values = []
    for name in (model, base):
        own = costs.isel(case=np.flatnonzero(costs["model"].values == name))
        one = own.isel(case=0)
        if row == LARGER:
            larger = np.flatnonzero(own["height"].values == 2 * one["height"].item())
            if not larger.size:
                return np.nan
            one = own.isel(case=larger[0])
        if row != TIME:
            values.append(float(one["flops"].sum()))
        else:
            values.append(float(one["latency"].mean()) if "latency" in one else np.nan)
    return 100 * values[0] / values[1]


def _published() -> dict[str, list[float]]:
    """The printed percentages of each row."""
    flops = published("llava_mini_flops_components_t")
    times = published("llava_mini_latency_ms")
    cases = zip(flops["method"], flops["resolution"], strict=True)
    totals = dict(zip(cases, flops["total"].tolist(), strict=True))
    found = {
        row: [100 * totals["LLaVA-Mini", side] / totals["LLaVA-v1.5", side]]
        for row, side in ((OPERATIONS, 336), (LARGER, 672))
    }
    plain = times.query("method == 'LLaVA-v1.5'")[[*_GPUS]].values[0]
    mini = times.query("method == 'LLaVA-Mini' and vision_tokens == 1")[[*_GPUS]].values[0]
    return found | {TIME: (100 * mini / plain).tolist()}
