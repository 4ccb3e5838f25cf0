"""Does attention predict being right?

plots.reliability(probe.reliability("probe-out/attention"))           # of `probe attention`
plots.reliability(found, outcome="hallucination")
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from probe.errors import one_of
from probe.plots.arguments import require
from probe.plots.by_head import layer_by_head
from probe.plots.style import (
    BLACK,
    LIGHT_GREY,
    below,
    caption,
    figure_of,
    finish,
    heading,
    layer_label,
    legend,
    looks,
    panels,
    shade,
    styled,
    title,
)
from probe.records.significance import RATE

_CALLED = "plots.reliability"
_PANEL = (3.4, 3.2)
_COLUMNS = 3
_MEANINGS = {
    "correct": "right answers from wrong ones",
    "hallucination": "things said to be there that are not, from answers of no",
    "confident": "confident answers from the others",
}
_CONFIDENCES = {"sum": "of all its tokens", "mean": "mean of its tokens", "first": "first token"}
_BASELINES = {"correct": "log p(answer)", "hallucination": "-log p(answer)", "confident": ""}


@styled()
def reliability(found: Any, outcome: str = "correct", *, ax: Any = None) -> Figure:
    """How well each head's attention tells right answers from wrong ones (or another outcome), and
    that of each layer beside the model's own confidence.

    How to read it: a cell is a head; 0.5 (white) tells nothing, red is higher where the event
    happened, blue is lower, and a dot marks a significant head. The last panel has the mean over
    heads by layer; the black line is the answer's log-probability: attention adds something only
    where a curve is farther from 0.5 than that line.

    Args:
        found: of `probe.reliability`.
        outcome: one of those that it holds.
        ax: one Axes for each measure, and one more.

    Raises ProbeError for anything else, and for an outcome that it does not hold.
    """
    found = require(found, "layer_auroc", _CALLED, "a dataset of probe.reliability")
    one_of(_CALLED, "outcomes of", outcome, map(str, found["outcome"].values))
    chosen = found.sel(outcome=outcome)
    measures = [str(name) for name in chosen["measure"].values]
    axes = _panels(ax, len(measures) + 1)
    for axis, measure in zip(axes, measures, strict=False):
        _heads(axis, chosen.sel(measure=measure), measure)
    _layers(axes[-1], chosen, measures, outcome)
    if ax is None:
        text = f"Does attention tell {_MEANINGS[outcome]}? · {found.attrs['model']}"
        heading(figure_of(axes), text)
    caption(axes, [_note(chosen)], {"": found}, own=ax is None)
    return figure_of(axes)


def _panels(ax: Any, count: int) -> np.ndarray:
    """The user's Axes, or those of a figure with three in a row."""
    if ax is not None:
        return panels(ax, 1, count, _PANEL, _CALLED).ravel()
    columns = min(count, _COLUMNS)
    axes = panels(None, -(-count // columns), columns, _PANEL, _CALLED).ravel()
    for axis in axes[count:]:
        axis.remove()
    return axes[:count]


def _heads(axis: Axes, chosen: xr.Dataset, measure: str) -> None:
    """Layer x head of one measure, significant heads marked."""
    area = chosen["auroc"]
    layers = area["layer"].values
    places = np.arange(len(layers))
    stack = str(chosen.attrs["stack"])
    image = layer_by_head(axis, area.values, Normalize(0, 1), "RdBu_r", stack)
    if (layers != places).any():  # some of the LLM's
        axis.set_yticks(places + 1, layers + 1)
    layer, head = np.nonzero(chosen["q"].values <= RATE)
    axis.scatter(head + 1, layer + 1, s=14, color=BLACK, linewidths=0)
    title(axis, f"{measure}\n{_strongest(area)}")
    figure_of(axis).colorbar(image, ax=axis, label="AUROC (1)")


def _strongest(area: xr.DataArray) -> str:
    """The head whose area is farthest from 0.5."""
    distance = np.abs(area.values - 0.5)
    if np.isnan(distance).all():
        return "no value"
    layer, head = np.unravel_index(np.nanargmax(distance), distance.shape)
    number = int(area["layer"].values[layer]) + 1
    return f"farthest: {area.values[layer, head]:.2f} (layer {number}, head {head + 1})"


def _layers(axis: Axes, chosen: xr.Dataset, measures: list[str], outcome: str) -> None:
    """Means over heads by layer, with bands, and the baseline."""
    layers = np.arange(chosen.sizes["layer"]) + 1
    handles = {}
    for measure, look in looks(measures).items():
        one = chosen.sel(measure=measure)
        axis.plot(layers, one["layer_auroc"], **look._asdict())
        low = one["layer_auroc_low"].values
        high = one["layer_auroc_high"].values
        shade(axis, layers, low, high, look.color)
        handles[measure] = Line2D([], [], **look._asdict())
    axis.axhline(0.5, color=LIGHT_GREY, zorder=0)
    baseline = float(chosen["baseline"])
    if not np.isnan(baseline):
        axis.axhline(baseline, color=BLACK, linewidth=1.5)
        bounds = [float(chosen[f"baseline_{end}"]) for end in ("low", "high")]
        axis.axhspan(*bounds, color=BLACK, alpha=0.1, linewidth=0)
        handles[_BASELINES[outcome]] = Line2D([], [], color=BLACK)
    stack = layer_label(str(chosen.attrs["stack"]))
    finish(axis, "mean over heads", layers=len(layers), xlabel=stack, ylabel="AUROC (1)")
    axis.set_ylim(0, 1)
    legend(axis, handles, **below(axis))


def _note(chosen: xr.Dataset) -> str:
    attrs = chosen.attrs
    samples = int(chosen["samples"])
    events = int(chosen["events"])
    tests = int(chosen["p"].notnull().sum() + chosen["layer_p"].notnull().sum())
    return (
        f"{chosen['queries'].item()} → {attrs['key_type']}; {samples} answers about "
        f"{int(chosen['images'])} images, {events} with the event; bands: 95 %, bootstrap over "
        f"images; dots: significant at a false discovery rate of {100 * RATE:.0f} % among {tests} "
        f"tests; log p(answer): {_CONFIDENCES[str(attrs['confidence'])]}"
    )
