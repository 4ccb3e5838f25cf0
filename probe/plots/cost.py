"""What a model costs: operations, time and memory, by component and against what one gives it.

    plots.flops(costs)                            # a bar a case, a colour a component (the paper's Fig. 7)
    plots.flops(costs, "height")                  # a line a model (Fig. 8); also "vision_tokens", "frames"
    plots.latency(costs, "vision_tokens")         # measured
    plots.memory(costs, "frames", limit=24e9)     # weights and cache (Fig. 9), and the memory of a GPU

`costs` is what `probe.cost` returned, or several of them joined. Source: arXiv 2501.03895, Fig.
7-9.
"""

from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from probe.errors import ProbeError
from probe.plots.style import caption, panels, title

COMPONENTS = {  # name -> (label, colour, hatch)
    "vision_encoder": ("vision encoder", "#0072B2", ""),
    "projector": ("projector", "#56B4E9", "////"),
    "compressor": ("compressor", "#000000", ""),
    "prefusion": ("pre-fusion", "#E69F00", "...."),
    "llm": ("LLM", "#009E73", ""),
}
LOOKS = (
    ("#D55E00", "s", "-"),
    ("#0072B2", "o", (0, (5, 2))),
    ("#009E73", "^", (0, (1, 1.2))),
    ("#CC79A7", "D", "-"),
    ("#000000", "v", (0, (5, 2))),
    ("#E69F00", "P", "-"),
)
IMAGE = ("height", "width")
AGAINST = {  # coordinate -> (label, what is the same in all points of a line)
    "vision_tokens": ("vision tokens that the LLM reads", (*IMAGE, "frames", "text_tokens")),
    "height": ("height of the image (px)", ("frames", "text_tokens")),
    "frames": ("frames of the video", (*IMAGE, "text_tokens")),
    "text_tokens": ("text tokens", (*IMAGE, "frames")),
}
SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_LEGEND = {"fontsize": 8, "frameon": False, "loc": "upper left", "bbox_to_anchor": (0, 0)}


def flops(
    costs: xr.Dataset, against: str | None = None, *, attention: bool = True, ax: Any = None
) -> Axes:
    """Operations of reading one prompt: stacked bars, a case each; `against` something, a line a
    model.

    attention: with the products of queries, keys and values, which papers often leave out; a tick
    on each bar tells
        where it would end without them. A line has the cases that differ from the model's first in nothing else.
    Raises ProbeError for something that costs are not labelled with.
    """
    costs = _checked(costs, "plots.flops")
    counted = costs["flops"] if attention else costs["flops"].sel(operation=["linear"])
    label = "FLOP a prompt" + ("" if attention else ", attention's own products left out")
    if against is not None:
        return _lines(
            costs, counted.sum(["component", "operation"]), against, label, "Operations", ax
        )
    by_component = counted.sum("operation")
    scale, letter = _scale(by_component.sum("component").values)
    axis = _bars(costs, letter + label, "Operations by component", ax, "plots.flops")
    _stack(axis, by_component / scale)
    if attention:
        linear = costs["flops"].sel(operation="linear").sum("component").values / scale
        axis.plot(
            linear,
            axis.get_yticks(),
            "|",
            color="black",
            markersize=13,
            label="without attention's own products",
        )
    below = ScaledTranslation(
        0, -0.55, axis.figure.dpi_scale_trans
    )  # of the axis' label, however high the axes are
    axis.legend(**_LEGEND, bbox_transform=axis.transAxes + below, ncols=3)
    _note(costs, axis, ax is None)
    return axis


def _stack(axis: Axes, by_component: xr.DataArray) -> None:
    """A bar a case, of its components in the order in which they run; its end in figures."""
    at, left = axis.get_yticks(), np.zeros(by_component.sizes["case"])
    for component in by_component["component"].values:
        name, colour, hatch = COMPONENTS[component]
        width = by_component.sel(component=component).values
        if width.any():
            axis.barh(
                at,
                width,
                0.68,
                left,
                label=name,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.5,
            )
        left = left + width
    for y, end in zip(at, left, strict=True):
        axis.annotate(
            f"{end:.3g}",
            (end, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.set_xlim(0, 1.12 * left.max())


def latency(costs: xr.Dataset, against: str | None = None, *, ax: Any = None) -> Axes:
    """Measured time from pixels to the first token: mean of the repeats, bars of one standard
    deviation.

    Raises ProbeError where nothing was measured.
    """
    costs = _checked(costs, "plots.latency")
    if "latency" not in costs:
        raise ProbeError(
            "plots.latency",
            expected="costs with a measurement",
            got="counted ones only",
            fix="cost(..., measure=5)",
        )
    costs = costs.isel(case=np.flatnonzero(costs["latency"].notnull().any("repeat").values))
    milliseconds = 1e3 * costs["latency"]
    mean, spread = milliseconds.mean("repeat"), milliseconds.std("repeat", ddof=1)
    above = "Time to the first token"
    if against is not None:
        return _lines(costs, mean, against, "ms", above, ax, spread)
    axis = _bars(costs, "ms", above, ax, "plots.latency")
    errors = {"ecolor": "0.2", "capsize": 3, "linewidth": 1}
    axis.barh(axis.get_yticks(), mean, 0.68, xerr=spread, color="#56B4E9", error_kw=errors)
    _note(costs, axis, ax is None, measured=True)
    return axis


def memory(
    costs: xr.Dataset,
    against: str = "frames",
    *,
    weights: bool = True,
    limit: float | None = None,
    ax: Any = None,
) -> Axes:
    """Counted memory of a prompt: the LLM's cache of vision and text, with the model's weights or
    without.

    limit: bytes that there are, drawn as a line. Activations, which come and go, are not in it.
    """
    costs = _checked(costs, "plots.memory")
    total = costs["kv_cache"].sum("token_type") + (
        costs["weights"].sum("component") if weights else 0
    )
    axis = _lines(
        costs, total, against, "B of " + ("weights and cache" if weights else "cache"), "Memory", ax
    )
    if limit is not None:
        scale, letter = next(pair for pair in SCALES if axis.get_ylabel().startswith(pair[1]))
        axis.axhline(limit / scale, color="0.4", linestyle=(0, (6, 2)), linewidth=1)
        axis.annotate(
            f"{limit / scale:g} {letter}B",
            (0.01, limit / scale),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8,
            color="0.3",
        )
    return axis


def cost_figures(costs: xr.Dataset) -> dict[str, Any]:
    """{"flops": Figure, ...}: every figure that these costs have the numbers for; pyplot does not
    keep them.

    Bars are of cases with as many frames as the first: a long video leaves nothing to see of the
    others.
    """
    images = costs.isel(case=np.flatnonzero(costs["frames"] == costs["frames"][0]))
    drawn = {"flops": flops(images)}
    for against in AGAINST:
        if any(len(cases) > 1 for cases in _series(costs, against).values()):
            drawn[f"flops-{against}"] = flops(costs, against)
            drawn[f"memory-{against}"] = memory(costs, against)
    if "latency" in costs:
        drawn["latency"] = latency(costs)
    found = {name: axis.figure for name, axis in drawn.items()}
    for figure in found.values():
        plt.close(figure)  # pyright: ignore[reportArgumentType]
    return found


def _checked(costs: Any, called: str) -> xr.Dataset:
    if not isinstance(costs, xr.Dataset) or "flops" not in costs or "case" not in costs.dims:
        raise ProbeError(
            called, expected="what probe.cost returns", got=f"a {type(costs).__name__}"
        )
    return costs


def _scale(values: np.ndarray) -> tuple[float, str]:
    """The largest unit of which there is at least one."""
    most = float(np.nanmax(values))
    return next(((scale, letter) for scale, letter in SCALES if most >= scale), SCALES[-1])


def _bars(costs: xr.Dataset, label: str, above: str, ax: Any, called: str) -> Axes:
    """Axes with a place for each case, the first on top."""
    axis = panels(ax, 1, 1, (6.4, 1.7 + 0.42 * costs.sizes["case"]), called)[0, 0]
    axis.set_yticks(np.arange(costs.sizes["case"]), costs["case"].values, parse_math=False)
    axis.set_ylim(costs.sizes["case"] - 0.4, -0.6)
    axis.set_xlabel(label)
    title(axis, above)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def _lines(
    costs: xr.Dataset,
    values: xr.DataArray,
    against: str,
    label: str,
    above: str,
    ax: Any,
    spread: xr.DataArray | None = None,
) -> Axes:
    """A line a model over a coordinate; logarithmic where it spans more than a factor of 20.
    `spread`: milliseconds.
    """
    if against not in AGAINST:
        raise ProbeError("plots", expected=f"against {', '.join(AGAINST)}", got=repr(against))
    axis = panels(ax, 1, 1, (5.4, 3.9), "plots")[0, 0]
    lines = _series(costs, against)
    shown = values.isel(case=np.concatenate(list(lines.values()))).values
    scale, letter = _scale(shown) if spread is None else (1.0, "")
    for (model, cases), (colour, marker, dash) in zip(lines.items(), cycle(LOOKS)):
        errors = None if spread is None else spread.values[cases]
        axis.errorbar(
            costs[against].values[cases],
            values.values[cases] / scale,
            errors,
            color=colour,
            marker=marker,
            markersize=4.5,
            linestyle=dash,
            linewidth=1.4,
            capsize=2,
            label=model,
        )
    _scales(axis, np.concatenate([costs[against].values[cases] for cases in lines.values()]), shown)
    axis.set_xlabel(AGAINST[against][0])
    axis.set_ylabel(letter + label)
    title(axis, f"{above} against {AGAINST[against][0].split(' (')[0]}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    _note(costs, axis, ax is None, measured=spread is not None)
    return axis


def _scales(axis: Axes, x: np.ndarray, y: np.ndarray) -> None:
    if x.max() > 20 * x.min() > 0:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
    if y.max() > 20 * y.min() > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
    else:
        axis.set_ylim(bottom=0)


def _note(costs: xr.Dataset, axis: Axes, own: bool, measured: bool = False) -> None:
    """What was counted or measured, in small print."""
    words = ", ".join(str(n) for n in np.unique(costs["text_tokens"].values))
    if measured:
        devices = ", ".join(dict.fromkeys(map(str, costs["device"].values)))
        line = f"measured on {devices}: mean and standard deviation of {costs.sizes['repeat']}; {words} text tokens"
    else:
        line = f"counted from shapes (rows: {costs.attrs['rows']}), a multiply-add is two; {words} text tokens"
    toys = zip(map(str, costs["model"].values), map(str, costs["toy"].values), strict=True)
    caption(
        np.array([axis]),
        [line],
        {model: xr.Dataset(attrs={"toy": toy}) for model, toy in toys},
        own,
    )


def _series(costs: xr.Dataset, against: str) -> dict[str, Int[np.ndarray, " case"]]:
    """The cases of each model's line, in order of the axis: those that are like its first in all
    that is held.

    Of several at one place the first counts.
    """
    found = {}
    for model in dict.fromkeys(map(str, costs["model"].values)):
        cases = np.flatnonzero(costs["model"].values == model)
        held = np.stack([costs[name].values[cases] for name in AGAINST[against][1]])
        alike = cases[(held == held[:, :1]).all(0)]
        _, first = np.unique(costs[against].values[alike], return_index=True)
        found[model] = alike[first]
    return found
