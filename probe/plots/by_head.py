"""Layer x head: which heads carry A → B, and where."""

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator

from probe.errors import ProbeError
from probe.plots.arguments import Records, chosen, default_query, labelled, of_records
from probe.plots.causal import head_effects
from probe.plots.sample_mean import average, sampling
from probe.plots.style import (
    LIGHT_GREY,
    caption,
    count_from_one,
    figure_of,
    label,
    layer_label,
    panels,
    styled,
    title,
)
from probe.plots.type_lines import gap_notes
from probe.records import node

_CALLED = "plots.heads"
_PANEL = (5.2, 4.2)


@of_records
@styled()
def heads(
    record: Records,
    query_type: str | None = None,
    key_type: str = "vision",
    stack: str = "llm",
    *,
    value: str = "mass",
    weights: str = "sample",
    ax: Any = None,
) -> Axes | Figure:
    """A cell for each head of each layer: one A → B, mean over samples.

    How to read it: the first layer is on top; a bright cell is a head that gives much of its
    attention to B. Cells without a number are grey. All records share one colour scale.

    Args:
        query_type: by default the response, or what comes nearest to it and was measured.
        value: "mass", "share", "lift" (logarithmic colours around 1), "contribution",
            "head_entropy" or "head_entropy_ratio".
        weights: "sample" or "query_count", as in `mass`.

    What `head_sweep` returned is drawn by `head_effects`: heads ranked by their effect.

    Returns Axes for one record, a Figure for several (a list, or {label: record}). Source: our
    own; the paper averages over heads. Raises ProbeError for a value without heads ("entropy"),
    and for a value, stack, type or weights that a record does not have.
    """
    if isinstance(record, xr.Dataset) and "untouched_gold_logprob" in record:
        return head_effects(record, ax=ax)
    if value in ("entropy", "entropy_ratio"):
        expected = "a value of each head"
        fix = f"use 'head_{value}'"
        raise ProbeError(_CALLED, expected=expected, got=repr(value), fix=fix)
    records = labelled(record, _CALLED)
    means = {}
    for name, one in records.items():
        measured = node(one, stack)
        query_type = query_type or default_query(measured)
        chosen(query_type, measured["query_type"].values.tolist(), _CALLED)
        chosen(key_type, measured["key_type"].values.tolist(), _CALLED)
        mean = average(one, stack, value, weights=weights, per_head=True, band=False).mean
        means[name] = mean.sel(query_type=query_type, key_type=key_type)
    axes = panels(ax, 1, len(records), _PANEL, _CALLED)
    norm = _norm(np.concatenate([mean.values.ravel() for mean in means.values()]), value)
    colours = "PuOr_r" if value == "lift" else "viridis"
    ticks = {"ticks": LogLocator(subs=(1, 2, 5)), "format": "{x:g}"} if value == "lift" else {}
    for axis, (name, mean) in zip(axes.flat, means.items(), strict=True):
        image = layer_by_head(axis, mean.values, norm, colours, stack)
        if (mean["layer"].values != np.arange(mean.sizes["layer"])).any():  # some of the LLM's
            axis.set_yticks(np.arange(mean.sizes["layer"]) + 1, mean["layer"].values + 1)
        title(axis, f"{query_type} → {key_type}\n{name}")
        bar = axis.figure.colorbar(image, ax=axis, label=label(mean), **ticks)
        bar.minorticks_off()
    notes = [*sampling(records, stack, weights), *gap_notes(records, stack)]
    caption(axes, notes, records, own=ax is None)
    return axes[0, 0] if isinstance(record, xr.DataTree) else figure_of(axes)


def _norm(values: Float[np.ndarray, " value"], value: str) -> Normalize:
    known = values[~np.isnan(values)]
    if value != "lift":
        highest = known.max(initial=0)
        return Normalize(0, highest or 1)
    # as far below 1 as above it, at most a hundredfold
    distances = np.abs(np.log(known[known > 0]))
    farthest = distances.max(initial=np.log(1.1))
    reach = min(farthest, np.log(100))
    return LogNorm(np.exp(-reach), np.exp(reach), clip=True)


def layer_by_head(
    axis: Axes, values: Float[np.ndarray, "layer head"], norm: Normalize, colours: str, stack: str
) -> AxesImage:
    """A coloured cell for each head, the first layer on top; both are counted from 1."""
    layers, heads_ = values.shape
    extent = (0.5, heads_ + 0.5, layers + 0.5, 0.5)
    colourmap = matplotlib.colormaps[colours].with_extremes(bad=LIGHT_GREY)
    image = axis.imshow(values, colourmap, norm, aspect="auto", extent=extent)
    axis.set(xlabel="head", ylabel=layer_label(stack))
    count_from_one(axis.xaxis, heads_)
    count_from_one(axis.yaxis, layers)
    return image
