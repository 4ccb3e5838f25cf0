"""Axes of costs: a place for each case, or a line a model over a coordinate; units, scales and the
caption.

    axis = bars(costs, "FLOP a prompt", "Operations", None, "plots.flops")
    axis = lines(costs, costs["flops"].sum(), "height", "FLOP a prompt", "Operations", None)
"""

from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from probe.errors import ProbeError
from probe.plots.style import caption, finish, legend, looks, panels

_IMAGE = ("height", "width")
AGAINST = {  # coordinate -> (label, unit, what is the same in all points of a line)
    "vision_tokens": ("vision tokens that the LLM reads", "", (*_IMAGE, "frames", "text_tokens")),
    "height": ("height of the image", " (px)", ("frames", "text_tokens")),
    "frames": ("frames of the video", "", (*_IMAGE, "text_tokens")),
    "text_tokens": ("text tokens", "", (*_IMAGE, "frames")),
}
UNITS = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}
_WIDE = 20  # highest ÷ lowest value of a logarithmic axis


def scale_of(values: Float[np.ndarray, "..."]) -> tuple[float, str]:
    """The largest unit that the highest value reaches, and its letter."""
    most = float(np.nanmax(values))
    reached = ((scale, letter) for letter, scale in UNITS.items() if most >= scale)
    return next(reached, (1.0, ""))


def bars(costs: xr.Dataset, label: str, text: str, ax: Any, called: str) -> Axes:
    """Axes with a place for each case, the first on top."""
    cases = costs["case"].values
    axis = panels(ax, 1, 1, (7.2, 1.9 + 0.46 * len(cases)), called)[0, 0]
    axis.set_yticks(np.arange(len(cases)), cases, parse_math=False)
    axis.set_ylim(len(cases) - 0.4, -0.6)
    finish(axis, text, xlabel=label)
    return axis


def lines(
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
    cases_of = series(costs, against)
    every = np.concatenate(list(cases_of.values()))
    x = costs[against].values
    y = values.values
    wide = _is_wide(y[every])
    scaled_by = np.sort(y[every])[:1] if wide else y[every]  # 15 to 3,300 GB, not 0.015 to 3.3 TB
    scale, letter = scale_of(scaled_by) if spread is None else (1.0, "")
    for (model, cases), look in zip(cases_of.items(), looks(cases_of).values(), strict=True):
        errors = None if spread is None else spread.values[cases]
        axis.errorbar(x[cases], y[cases] / scale, errors, label=model, **look._asdict())
    _scales(axis, _is_wide(x[every]), wide)
    name, x_unit, _ = AGAINST[against]
    finish(axis, f"{text} against {name}", xlabel=name + x_unit, ylabel=letter + unit)
    legend(axis)
    cost_caption(costs, axis, ax is None, measured=spread is not None)
    return axis


def _is_wide(values: np.ndarray) -> bool:
    """Whether values span more than a factor of 20."""
    return bool(values.max() > _WIDE * values.min() > 0)


def _scales(axis: Axes, wide_x: bool, wide_y: bool) -> None:
    """Logarithmic scales where they are wide, with plain numbers; otherwise y begins at 0."""
    if wide_x:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:,.10g}")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # of tokens, frames, pixels
    if wide_y:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:,.10g}")
    else:
        axis.set_ylim(
            0, 1.05 * axis.dataLim.ymax or 1
        )  # a line that hardly rises is not on the edge


def cost_caption(costs: xr.Dataset, axis: Axes, own: bool, measured: bool = False) -> None:
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


def series(costs: xr.Dataset, against: str) -> dict[str, Int[np.ndarray, " case"]]:
    """The cases of each model's line, in the order of the axis.

    They equal the model's first case in all that is held fixed; of several at one place the first
    counts.
    """
    fixed = AGAINST[against][2]
    cases_of = {}
    for model in dict.fromkeys(costs["model"].values):
        cases = np.flatnonzero(costs["model"].values == model)
        settings = np.stack([costs[name].values[cases] for name in fixed])
        comparable = cases[(settings == settings[:, :1]).all(0)]
        _, first = np.unique(costs[against].values[comparable], return_index=True)
        cases_of[str(model)] = comparable[first]
    return cases_of
