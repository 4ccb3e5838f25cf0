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
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probe.errors import ProbeError
from probe.plots.arguments import require
from probe.plots.style import (
    BLACK,
    DARK_GREY,
    DASHED,
    LOOKS,
    SKY,
    below,
    caption,
    finish,
    legend,
    looks,
    panels,
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
_IMAGE = ("height", "width")
AGAINST = {  # coordinate -> (label, unit, what is the same in all points of a line)
    "vision_tokens": ("vision tokens that the LLM reads", "", (*_IMAGE, "frames", "text_tokens")),
    "height": ("height of the image", " (px)", ("frames", "text_tokens")),
    "frames": ("frames of the video", "", (*_IMAGE, "text_tokens")),
    "text_tokens": ("text tokens", "", (*_IMAGE, "frames")),
}
_UNITS = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}
_BAR = 0.68  # height
_WIDE = 20  # highest ÷ lowest value of a logarithmic axis


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
        return _lines(costs, total, against, unit, "Operations", ax)
    by_component = counted.sum("operation")
    scale, letter = _scale(by_component.sum("component").values)
    axis = _bars(costs, letter + unit, "Operations by component", ax, "plots.flops")
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
    _caption(costs, axis, ax is None)
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
        return _lines(costs, mean, against, "ms", text, ax, spread)
    axis = _bars(costs, "ms", text, ax, "plots.latency")
    errors = {"ecolor": DARK_GREY, "capsize": 3, "linewidth": 1}
    axis.barh(axis.get_yticks(), mean, _BAR, xerr=spread, color=SKY, error_kw=errors)
    _caption(costs, axis, ax is None, measured=True)
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
    axis = _lines(costs, total, against, unit, "Memory", ax)
    if limit is not None:
        height = limit / _UNITS[axis.get_ylabel().removesuffix(unit)]
        axis.axhline(height, color=DARK_GREY, linestyle=DASHED, linewidth=1)
        scale, letter = _scale(np.array([limit]))
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
        if any(len(cases) > 1 for cases in _series(costs, against).values()):
            drawn[f"flops-{against}"] = flops(costs, against)
            drawn[f"memory-{against}"] = memory(costs, against)
    if "latency" in costs:
        drawn["latency"] = latency(costs)
    return {name: unmanaged(axis) for name, axis in drawn.items()}


def _checked(costs: Any, called: str) -> xr.Dataset:
    return require(costs, "flops", called, "what probe.cost returns")


def _scale(values: Float[np.ndarray, "..."]) -> tuple[float, str]:
    """The largest unit that the highest value reaches, and its letter."""
    most = float(np.nanmax(values))
    reached = ((scale, letter) for letter, scale in _UNITS.items() if most >= scale)
    return next(reached, (1.0, ""))


def _bars(costs: xr.Dataset, label: str, text: str, ax: Any, called: str) -> Axes:
    """Axes with a place for each case, the first on top."""
    cases = costs["case"].values
    axis = panels(ax, 1, 1, (7.2, 1.9 + 0.46 * len(cases)), called)[0, 0]
    axis.set_yticks(np.arange(len(cases)), cases, parse_math=False)
    axis.set_ylim(len(cases) - 0.4, -0.6)
    finish(axis, text, xlabel=label)
    return axis


def _lines(
    costs: xr.Dataset,
    values: xr.DataArray,
    against: str,
    unit: str,
    text: str,
    ax: Any,
    spread: xr.DataArray | None = None,
) -> Axes:
    """A line a model over a coordinate; logarithmic where it spans more than a factor of 20.

    spread: of measured values, which keep their unit; counted ones get the largest that fits.
    """
    if against not in AGAINST:
        raise ProbeError("plots", expected=f"against {', '.join(AGAINST)}", got=repr(against))
    axis = panels(ax, 1, 1, (5.4, 3.9), "plots")[0, 0]
    lines = _series(costs, against)
    every = np.concatenate(list(lines.values()))
    x = costs[against].values
    y = values.values
    wide = _is_wide(y[every])
    scaled_by = np.sort(y[every])[:1] if wide else y[every]  # 15 to 3,300 GB, not 0.015 to 3.3 TB
    scale, letter = _scale(scaled_by) if spread is None else (1.0, "")
    for (model, cases), look in zip(lines.items(), looks(lines).values(), strict=True):
        errors = None if spread is None else spread.values[cases]
        axis.errorbar(x[cases], y[cases] / scale, errors, label=model, **look._asdict())
    _scales(axis, _is_wide(x[every]), wide)
    name, x_unit, _ = AGAINST[against]
    finish(axis, f"{text} against {name}", xlabel=name + x_unit, ylabel=letter + unit)
    legend(axis)
    _caption(costs, axis, ax is None, measured=spread is not None)
    return axis


def _is_wide(values: np.ndarray) -> bool:
    """Whether values span more than a factor of 20."""
    return bool(values.max() > _WIDE * values.min() > 0)


def _scales(axis: Axes, wide_x: bool, wide_y: bool) -> None:
    """Logarithmic scales where they are wide, with plain numbers; otherwise y begins at 0."""
    if wide_x:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:,.10g}")
    if wide_y:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:,.10g}")
    else:
        axis.set_ylim(bottom=0)


def _caption(costs: xr.Dataset, axis: Axes, own: bool, measured: bool = False) -> None:
    """What was counted or measured, in small print."""
    if measured:
        devices = ", ".join(dict.fromkeys(map(str, costs["device"].values)))
        repeats = costs.sizes["repeat"]
        how = f"measured on {devices}: mean and standard deviation of {repeats}"
    else:
        how = f"counted from shapes (rows: {costs.attrs['rows']}), a multiply-add is two"
    tokens = ", ".join(map(str, np.unique(costs["text_tokens"].values)))
    toys = zip(costs["model"].values, costs["toy"].values, strict=True)
    models = {str(model): xr.Dataset(attrs={"toy": toy}) for model, toy in toys}
    caption(axis, [f"{how}; {tokens} text tokens"], models, own)


def _series(costs: xr.Dataset, against: str) -> dict[str, Int[np.ndarray, " case"]]:
    """The cases of each model's line, in the order of the axis.

    They equal the model's first case in all that is held fixed; of several at one place the first
    counts.
    """
    fixed = AGAINST[against][2]
    series = {}
    for model in dict.fromkeys(costs["model"].values):
        cases = np.flatnonzero(costs["model"].values == model)
        settings = np.stack([costs[name].values[cases] for name in fixed])
        comparable = cases[(settings == settings[:, :1]).all(0)]
        _, first = np.unique(costs[against].values[comparable], return_index=True)
        series[str(model)] = comparable[first]
    return series
