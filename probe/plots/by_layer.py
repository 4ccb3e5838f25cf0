"""Lines over layers, one for each A → B: attention by type (the paper's Fig. 2) and its entropy
(Fig. 3).
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from probe.errors import ProbeError
from probe.plots.sample_mean import Average, average, sampling
from probe.plots.style import (
    Records,
    caption,
    chosen,
    count_from_one,
    label,
    labelled,
    layer_label,
    line_style,
    panels,
    title,
)

_TITLES = {
    "mass": "Attention by token type",
    "share": "Share of attention by token type (queries that see the image)",
    "lift": "Attention against an even spread",
    "contribution": "What arrives from each token type",
    "entropy": "Entropy, heads averaged first (paper)",
    "head_entropy": "Entropy, mean of single heads",
}
_PANEL = (5.2, 3.9)
_LEGEND = 1.9  # inches beside the panels
_PAIRS = 10  # with more, the legend names types instead of pairs


def mass(
    record: Records,
    stack: str = "llm",
    value: str = "mass",
    *,
    query_types: str | Sequence[str] | None = None,
    key_types: str | Sequence[str] | None = None,
    weights: str = "sample",
    seed: int = 0,
    ax: Any = None,
) -> Any:
    """Attention of A → B over layers, mean over heads. Colour and marker tell the keys, the dash
    the queries.

    value: "mass", "share", "lift" or "contribution". With several samples: their mean and a 95 %
    bootstrap band over images; weights: "sample" or "query_count". Returns Axes, an array for
    several records.

    Source: arXiv 2501.03895, Fig. 2 and Eq. 4 (`value="mass"`). Raises ProbeError for a value,
    stack, type or weights that a record does not have, and for an `ax` of another number of Axes.
    """
    if value not in ("mass", "share", "lift", "contribution"):
        raise ProbeError(
            "plots.mass", expected="value of mass, share, lift, contribution", got=repr(value)
        )
    named = labelled(record, "plots.mass")
    averages = {
        name: average(one, stack, value, weights=weights, seed=seed) for name, one in named.items()
    }
    axes = _axes(ax, 1, len(named), "plots.mass")
    for axis, (name, found) in zip(axes.flat, averages.items(), strict=True):
        _draw(axis, found, query_types, key_types)
        _dress(axis, stack, value, name, found.mean, several=len(named) > 1)
    _scale(axes, value)
    _finish(axes, named, stack, weights, seed, own=ax is None, above=_TITLES[value])
    return axes[0, 0] if axes.size == 1 else axes[0]


def entropy(
    record: Records,
    stack: str = "llm",
    which: str | None = None,
    *,
    ratio: bool = False,
    query_types: str | Sequence[str] | None = None,
    key_types: str | Sequence[str] | None = None,
    weights: str = "sample",
    seed: int = 0,
    ax: Any = None,
) -> Any:
    """How spread out the attention of A over the tokens of B is: pooled as in the paper, and per
    head.

    which: "pooled" (heads averaged first), "head" (entropy in each head, then averaged) or "both";
    by default both, or pooled alone when `ax` is a single Axes. ratio: divided by ln(keys of the
    type), to compare models. Returns Axes, or an array of them: a panel a kind, and with several
    records a column a record.

    Source: arXiv 2501.03895, Fig. 3 and Appendix A (`which="pooled"`). Raises ProbeError for a
    `which`, stack, type or weights that there is not, for a record without entropies, and for an
    `ax` of another number of Axes.
    """
    kinds = {"pooled": ["entropy"], "head": ["head_entropy"], "both": ["entropy", "head_entropy"]}
    which = which or ("pooled" if isinstance(ax, Axes) else "both")
    if which not in kinds:
        raise ProbeError("plots.entropy", expected=f"which of {', '.join(kinds)}", got=repr(which))
    named = labelled(record, "plots.entropy")
    values = kinds[which]
    flat = len(named) == 1  # one record: its panels side by side; several: a column a record
    axes = _axes(ax, *((1, len(values)) if flat else (len(values), len(named))), "plots.entropy")
    for row, value in zip(axes.T if flat else axes, values, strict=True):
        for axis, (name, one) in zip(row, named.items(), strict=True):
            found = average(one, stack, value, weights=weights, ratio=ratio, seed=seed)
            _draw(axis, found, query_types, key_types)
            _dress(axis, stack, value, name, found.mean, several=not flat)
            title(axis, f"{_TITLES[value]}\n{name}")
    _scale(axes, "entropy")
    _finish(axes, named, stack, weights, seed, own=ax is None)
    return axes[0, 0] if axes.size == 1 else axes[0] if min(axes.shape) == 1 else axes


def _axes(ax: Any, rows: int, columns: int, called: str) -> np.ndarray:
    return panels(ax, rows, columns, (_PANEL[0] + _LEGEND / columns, _PANEL[1]), called)


def _draw(axis: Axes, found: Average, query_types: Any, key_types: Any) -> None:
    """A line for each A → B that has numbers (what causality hides has none)."""
    there = [found.mean[dim].values.tolist() for dim in ("query_type", "key_type")]
    for query in chosen(query_types, there[0], "plots"):
        for key in chosen(key_types, there[1], "plots"):
            mean, low, high = (part.sel(query_type=query, key_type=key).values for part in found)
            if np.isnan(mean).all():
                continue
            look = line_style(query, key, *there)
            layers = found.mean["layer"].values + 1
            every = max(1, len(layers) // 12)
            axis.plot(
                layers,
                mean,
                label=f"{query} → {key}",
                markersize=4,
                linewidth=1.6,
                markevery=every,
                **look,
            )
            if not np.array_equal(low, high, equal_nan=True):
                axis.fill_between(layers, low, high, color=look["color"], alpha=0.16, linewidth=0)
    if not axis.lines:
        raise ProbeError(
            "plots",
            expected="a pair of types that was measured",
            got=f"{query_types} → {key_types}",
        )


def _dress(
    axis: Axes, stack: str, value: str, name: str, array: xr.DataArray, several: bool
) -> None:
    title(axis, name if several else f"{_TITLES[value]}\n{name}")
    axis.set_xlabel(layer_label(stack))
    axis.set_ylabel(label(array))
    count_from_one(axis.xaxis, array.sizes["layer"])
    axis.spines[["top", "right"]].set_visible(False)
    if value == "lift":
        axis.set_yscale("log", nonpositive="mask", subs=[])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.axhline(1, color="0.6", linewidth=0.8, zorder=0)


def _scale(axes: np.ndarray, value: str) -> None:
    """One scale for all panels, so that they can be compared."""
    limits = np.array([axis.get_ylim() for axis in axes.flat])
    low, high = limits[:, 0].min(), limits[:, 1].max()
    if value in ("mass", "share"):
        low, high = -0.02, 1.02
    elif value != "lift":
        low = 0
    for axis in axes.flat:
        axis.set_ylim(low, high)


def _finish(
    axes: np.ndarray, named: dict, stack: str, weights: str, seed: int, own: bool, above: str = ""
) -> None:
    lines = {
        text: line
        for axis in axes.flat
        for line in axis.lines
        if (text := str(line.get_label()))[0] != "_"
    }
    handles, heading = (
        (lines, "query → key")
        if len(lines) <= _PAIRS
        else (_parts(lines), "key by colour,\nquery by dash")
    )
    outside = {
        "loc": "upper left",
        "bbox_to_anchor": (1.01, 1),
        "frameon": False,
        "handlelength": 4,
    }
    small = {"fontsize": 8, "title_fontsize": 8}
    legend = axes[0, -1].legend(
        list(handles.values()), list(handles), title=heading, **small, **outside
    )
    for text in legend.texts:
        text.set_parse_math(False)
    if own and above and len(named) > 1:
        axes.flat[0].figure.suptitle(above, x=0.01, ha="left", fontsize=11)
    caption(axes, sampling(named, stack, weights, seed), named, own)


def _parts(lines: dict[str, Line2D]) -> dict[str, Line2D]:
    """For many pairs: one entry a key type and one a query type, instead of one a pair."""
    keys, queries = {}, {}
    for text, line in lines.items():
        query, key = text.split(" → ")
        keys[f"→ {key}"] = Line2D(
            [], [], color=line.get_color(), marker=line.get_marker(), markersize=4, linestyle=""
        )
        queries[f"{query} →"] = copy(line)
        queries[f"{query} →"].set(color="0.3", marker="", label="")
    return keys | queries
