"""What a model costs: operations, time and memory, by component or against the size of the input.

    plots.flops(costs)                         # a bar a case, a colour a component (Fig. 7)
    plots.flops(costs, "height")               # a line a model (Fig. 8)
    plots.latency(costs, "vision_tokens")      # measured
    plots.memory(costs, "frames", limit=24e9)  # weights and cache (Fig. 9), and a GPU's memory

`costs` is what `probe.cost` returned, or several of them joined. Source: arXiv 2501.03895, Fig.
7-9.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probe.errors import ProbeError
from probe.plots.arguments import require
from probe.plots.cost_axes import AGAINST, UNITS, bars, cost_caption, lines, scale_of, series
from probe.plots.style import (
    BLACK,
    DARK_GREY,
    DASHED,
    LOOKS,
    SKY,
    below,
    legend,
    styled,
    unmanaged,
)

COMPONENTS = {  # name -> (label, hatch)
    "vision_encoder": ("vision encoder", ""),
    "projector": ("projector", "////"),
    "compressor": ("compressor", ""),
    "prefusion": ("pre-fusion", "...."),
    "llm": ("LLM", ""),
}
_BAR = 0.68  # height


@styled()
def flops(
    costs: xr.Dataset, against: str | None = None, *, attention: bool = True, ax: Any = None
) -> Axes:
    """Operations of reading one prompt: a bar a case, or, `against` something, a line a model.

    How to read it: the colours of a bar are the model's components in the order in which they run;
    its number is their sum. A tick marks where the bar would end without the products of queries,
    keys and values. A line has the cases that differ from the model's first in nothing else.

    Args:
        against: "vision_tokens", "height", "frames" or "text_tokens".
        attention: count the products of queries, keys and values, which papers often leave out.

    Raises ProbeError for something that costs are not labelled with.
    """
    costs = _checked(costs, "plots.flops")
    counted = costs["flops"] if attention else costs["flops"].sel(operation=["linear"])
    unit = "FLOP a prompt" + ("" if attention else ", attention's own products left out")
    if against is not None:
        total = counted.sum(["component", "operation"])
        return lines(costs, total, against, unit, "Operations", ax)
    by_component = counted.sum("operation")
    scale, letter = scale_of(by_component.sum("component").values)
    axis = bars(costs, letter + unit, "Operations by component", ax, "plots.flops")
    _stack(axis, by_component / scale)
    if attention:
        linear = costs["flops"].sel(operation="linear").sum("component").values / scale
        axis.plot(
            linear,
            axis.get_yticks(),
            "|",
            color=BLACK,
            markersize=13,
            label="without attention's own products",
        )
    legend(axis, ncols=3, **below(axis))
    cost_caption(costs, axis, ax is None)
    return axis


def _stack(axis: Axes, by_component: xr.DataArray) -> None:
    """A bar a case, of its components; its end in figures."""
    heights = axis.get_yticks()
    left = np.zeros(by_component.sizes["case"])
    for component in by_component["component"].values:
        name, hatch = COMPONENTS[component]
        width = by_component.sel(component=component).values
        if width.any():
            axis.barh(
                heights,
                width,
                _BAR,
                left,
                label=name,
                hatch=hatch,
                color=LOOKS[component].color,
                edgecolor="white",
                linewidth=0.5,
            )
        left = left + width
    for y, end in zip(heights, left, strict=True):
        axis.annotate(
            f"{end:.3g}",
            (end, y),
            fontsize=8,
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    ticks = np.asarray(MaxNLocator(6).tick_values(0, 1.12 * float(left.max())))
    axis.set_xticks(ticks[ticks >= 0])  # the last one is to the right of the bars
    axis.set_xlim(0, ticks[-1])


@styled()
def latency(costs: xr.Dataset, against: str | None = None, *, ax: Any = None) -> Axes:
    """Measured time from pixels to the first token.

    How to read it: a bar (or point) is the mean of the repeats, its error bar one standard
    deviation. Times are of the machine that the caption names. Raises ProbeError where nothing was
    measured, and for something that costs are not labelled with.
    """
    costs = _checked(costs, "plots.latency")
    if "latency" not in costs:
        expected = "costs with a measurement"
        fix = "cost(..., measure=5)"
        raise ProbeError("plots.latency", expected=expected, got="counted ones only", fix=fix)
    costs = costs.isel(case=np.flatnonzero(costs["latency"].notnull().any("repeat").values))
    milliseconds = 1e3 * costs["latency"]
    mean = milliseconds.mean("repeat")
    spread = milliseconds.std("repeat", ddof=1)
    text = "Time to the first token"
    if against is not None:
        return lines(costs, mean, against, "ms", text, ax, spread)
    axis = bars(costs, "ms", text, ax, "plots.latency")
    errors = {"ecolor": DARK_GREY, "capsize": 3, "linewidth": 1}
    axis.barh(axis.get_yticks(), mean, _BAR, xerr=spread, color=SKY, error_kw=errors)
    axis.set_xlim(left=0)  # where repeats differ much, the deviation is larger than the mean
    cost_caption(costs, axis, ax is None, measured=True)
    return axis


@styled()
def memory(
    costs: xr.Dataset,
    against: str = "frames",
    *,
    weights: bool = True,
    limit: float | None = None,
    ax: Any = None,
) -> Axes:
    """Counted memory of a prompt: the LLM's cache of vision and text, with the model's weights or
    without. Activations, which come and go, are not included.

    How to read it: where a line crosses `limit` (bytes, drawn as a dashed line), the prompt no
    longer fits. Raises ProbeError for something that costs are not labelled with.
    """
    costs = _checked(costs, "plots.memory")
    total = costs["kv_cache"].sum("token_type")
    if weights:
        total = total + costs["weights"].sum("component")
    unit = "B of weights and cache" if weights else "B of cache"
    axis = lines(costs, total, against, unit, "Memory", ax)
    if limit is not None:
        height = limit / UNITS[axis.get_ylabel().removesuffix(unit)]
        axis.axhline(height, color=DARK_GREY, linestyle=DASHED, linewidth=1)
        scale, letter = scale_of(np.array([limit]))
        text = f"{limit / scale:g} {letter}B"
        axis.annotate(
            text,
            (0.01, height),
            (0, 3),
            color=DARK_GREY,
            fontsize=8,
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
        )
    return axis


def cost_figures(costs: xr.Dataset) -> dict[str, Figure]:
    """{"flops": Figure, ...}: every figure that these costs have the numbers for.

    Bars are of cases with as many frames as the first: next to a long video the others could not be
    seen. pyplot does not keep the figures.
    """
    images = costs.isel(case=np.flatnonzero(costs["frames"] == costs["frames"][0]))
    drawn = {"flops": flops(images)}
    for against in AGAINST:
        if any(len(cases) > 1 for cases in series(costs, against).values()):
            drawn[f"flops-{against}"] = flops(costs, against)
            drawn[f"memory-{against}"] = memory(costs, against)
    if "latency" in costs:
        drawn["latency"] = latency(costs)
    return {name: unmanaged(axis) for name, axis in drawn.items()}


def _checked(costs: Any, called: str) -> xr.Dataset:
    return require(costs, "flops", called, "what probe.cost returns")
