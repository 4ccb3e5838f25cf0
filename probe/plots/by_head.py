"""Layer x head: which heads carry A → B, and where."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator

from probe.errors import ProbeError
from probe.plots.sample_mean import average, sampling
from probe.plots.style import (
    Records,
    caption,
    chosen,
    count_from_one,
    default_query,
    label,
    labelled,
    layer_label,
    panels,
    title,
)
from probe.records import node

_TICKS = {"ticks": LogLocator(subs=(1, 2, 5)), "format": "{x:g}"}


def heads(
    record: Records,
    query_type: str | None = None,
    key_type: str = "vision",
    stack: str = "llm",
    *,
    value: str = "mass",
    weights: str = "sample",
    ax: Any = None,
) -> Any:
    """An image of layer x head for one A → B, mean over samples; one colour scale for all records.

    query_type: the response by default, else what comes nearest. value: "mass", "share", "lift"
    (log colours around 1), "contribution" or "head_entropy". Cells without a number are grey.
    Returns Axes, an array of them for several records.

    Source: our own; the paper averages over heads. Raises ProbeError for a value without heads
    ("entropy"), and for a value, stack, type or weights that a record does not have.
    """
    if value == "entropy":
        raise ProbeError(
            "plots.heads",
            expected="a value of each head",
            got="'entropy'",
            fix="use 'head_entropy'",
        )
    named = labelled(record, "plots.heads")
    found = {}
    for name, one in named.items():
        measured = node(one, stack)
        types = {dim: measured[dim].values.tolist() for dim in ("query_type", "key_type")}
        query_type = query_type or default_query(measured)
        chosen(query_type, types["query_type"], "plots.heads")
        chosen(key_type, types["key_type"], "plots.heads")
        mean = average(one, stack, value, weights=weights, per_head=True, band=False).mean
        found[name] = mean.sel(query_type=query_type, key_type=key_type)
    axes = panels(ax, 1, len(named), (5.2, 4.2), "plots.heads")[0]
    norm = _norm(np.concatenate([mean.values.ravel() for mean in found.values()]), value)
    for axis, (name, mean) in zip(axes, found.items(), strict=True):
        image = _image(axis, mean.values, norm, "PuOr_r" if value == "lift" else "viridis")
        axis.set(xlabel="head", ylabel=layer_label(stack))
        title(axis, f"{query_type} → {key_type}\n{name}")
        bar = axis.figure.colorbar(
            image, ax=axis, label=label(mean), **_TICKS if value == "lift" else {}
        )
        bar.minorticks_off()
    caption(axes, sampling(named, stack, weights), named, own=ax is None)
    return axes[0] if len(axes) == 1 else axes


def _norm(values: np.ndarray, value: str) -> Normalize:
    known = values[~np.isnan(values)]
    if value == "lift":  # as far below 1 as above it, at most a hundredfold
        positive = known[known > 0]
        reach = np.clip(np.abs(np.log(positive)).max(initial=np.log(1.1)), None, np.log(100))
        return LogNorm(np.exp(-reach), np.exp(reach), clip=True)
    return Normalize(0, known.max(initial=0) or 1)


def _image(axis: Axes, values: np.ndarray, norm: Normalize, colours: str) -> AxesImage:
    layers, heads_ = values.shape
    extent = (0.5, heads_ + 0.5, layers + 0.5, 0.5)  # the first layer on top; both count from 1
    colourmap = matplotlib.colormaps[colours].with_extremes(bad="0.8")
    image = axis.imshow(
        values, colourmap, norm, aspect="auto", interpolation="nearest", extent=extent
    )
    count_from_one(axis.xaxis, heads_)
    count_from_one(axis.yaxis, layers)
    return image
