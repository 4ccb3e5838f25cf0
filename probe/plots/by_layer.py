"""Lines over layers, one for each A → B: attention by type (the paper's Fig. 2) and its entropy
(Fig. 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from probe.errors import ProbeError
from probe.plots.arguments import Records, chosen, labelled, of_records
from probe.plots.sample_mean import Average, average, sampling
from probe.plots.style import (
    DARK_GREY,
    GREY,
    RIGHT,
    caption,
    figure_of,
    finish,
    heading,
    label,
    layer_label,
    legend,
    line_style,
    panels,
    shade,
    styled,
)
from probe.records import entropy_ratio

Types = str | Sequence[str] | None

_TITLES = {
    "mass": "Attention by token type",
    "share": "Share of attention by token type (queries that see the image)",
    "lift": "Attention against an even spread",
    "contribution": "What arrives from each token type",
    "entropy": "Entropy, heads averaged first (paper)",
    "head_entropy": "Entropy, mean of single heads",
    "entropy_ratio": "Entropy against an even spread, heads averaged first",
    "head_entropy_ratio": "Entropy against an even spread, mean of single heads",
}
_VALUES = ("mass", "share", "lift", "contribution")
_ENTROPIES = {"pooled": ["entropy"], "head": ["head_entropy"], "both": ["entropy", "head_entropy"]}
_PANEL = (5.2, 3.9)
_LEGEND = 1.9  # inches to the right of the panels
_MEANINGS = {
    "cls": "the class token of the vision encoder",
    "bos": "the first token of the prompt",
    "last": "the last token of the prompt",
}
_PAIRS = 10  # with more, the legend names types instead of pairs


@of_records
@styled()
def mass(
    record: Records,
    stack: str = "llm",
    value: str = "mass",
    *,
    query_types: Types = None,
    key_types: Types = None,
    weights: str = "sample",
    seed: int = 0,
    ax: Any = None,
) -> Axes | Figure:
    """Attention of A → B over layers, mean over heads.

    How to read it: a line is what the queries of type A give to the keys of type B in each layer.
    Colour and marker are those of B, the dash is that of A. With several samples a line is their
    mean and its band the 95 % bootstrap interval over images, layer by layer.

    Args:
        value: "mass", "share", "lift" (1 is an even spread) or "contribution".
        query_types, key_types: the types A and B to draw; all by default.
        weights: "sample" (every sample counts once) or "query_count" (every query does).
        ax: one Axes for each record.

    Returns Axes for one record, and for several (a list, or {label: record}) a Figure with a panel
    a record on one scale. Source: arXiv 2501.03895, Fig. 2 and Eq. 4 (`value="mass"`). Raises
    ProbeError for a value, stack, type or weights that a record does not have, and for an `ax` of
    another number of Axes.
    """
    called = "plots.mass"
    if value not in _VALUES:
        raise ProbeError(called, expected=f"value of {', '.join(_VALUES)}", got=repr(value))
    named = labelled(record, called)
    averages = [average(one, stack, value, weights=weights, seed=seed) for one in named.values()]
    axes = _panels(ax, 1, len(named), called)
    single = isinstance(record, xr.DataTree)
    for axis, name, averaged in zip(axes.flat, named, averages, strict=True):
        text = f"{_TITLES[value]}\n{name}" if single else name
        _draw(axis, averaged, query_types, key_types, text, stack)
        if value == "lift":
            _lift_axis(axis)
    _same_scale(axes, value)
    if ax is None and not single:
        heading(figure_of(axes), _TITLES[value])
    _legend_of(axes)
    notes = [*sampling(named, stack, weights, seed), *_explanations(axes)]
    caption(axes, notes, named, own=ax is None)
    return axes[0, 0] if single else figure_of(axes)


@styled()
def entropy(
    record: Records,
    stack: str = "llm",
    which: str | None = None,
    *,
    ratio: bool = False,
    query_types: Types = None,
    key_types: Types = None,
    weights: str = "sample",
    seed: int = 0,
    ax: Any = None,
) -> Axes | Figure:
    """How spread out the attention of A over the tokens of B is: pooled as in the paper, and in
    each head.

    How to read it: 0 nat is attention to a single token; the highest possible value is the
    logarithm of the number of tokens of B. Low entropy in each head with a high pooled one means
    that heads look at different places. Lines and bands are those of `mass`.

    Args:
        which: "pooled" (heads averaged first), "head" (entropy in each head, then averaged) or
            "both"; by default both, or pooled alone when `ax` is a single Axes.
        ratio: the entropy of each query ÷ ln(keys of the type that it can see), so that pairs of
            types, and models with different numbers of vision tokens, can be compared: 1 is an even
            spread.

    Returns a Figure, with a panel for each kind of entropy and, for several records, a column for
    each; the Axes when `ax` is a single one. Source: arXiv 2501.03895, Fig. 3 and Appendix A
    (`which="pooled"`). Raises ProbeError for an unknown `which`, for a stack, type, entropy or
    weights that a record does not have, and for an `ax` of another number of Axes.
    """
    called = "plots.entropy"
    which = which or ("pooled" if isinstance(ax, Axes) else "both")
    if which not in _ENTROPIES:
        raise ProbeError(called, expected=f"which of {', '.join(_ENTROPIES)}", got=repr(which))
    named, values = labelled(record, called), _ENTROPIES[which]
    if ratio:
        for one in named.values():
            entropy_ratio(one, stack, values[0])  # says what to do about a record without
        values = [f"{value}_ratio" for value in values]
    averages = [
        [average(one, stack, value, weights=weights, seed=seed) for value in values]
        for one in named.values()
    ]
    if len(named) == 1:  # the panels of one record are next to each other
        axes = _panels(ax, 1, len(values), called)
        columns = axes
    else:
        axes = _panels(ax, len(values), len(named), called)
        columns = axes.T
    for column, name, of_record in zip(columns, named, averages, strict=True):
        for axis, value, averaged in zip(column, values, of_record, strict=True):
            _draw(axis, averaged, query_types, key_types, f"{_TITLES[value]}\n{name}", stack)
            if ratio:
                axis.axhline(1, color=GREY, linewidth=0.8, zorder=0)
    _same_scale(axes, values[0])
    _legend_of(axes)
    notes = [*sampling(named, stack, weights, seed), *_explanations(axes)]
    caption(axes, notes, named, own=ax is None)
    return ax if isinstance(ax, Axes) else figure_of(axes)


def _panels(ax: Any, rows: int, columns: int, called: str) -> np.ndarray:
    return panels(ax, rows, columns, (_PANEL[0] + _LEGEND / columns, _PANEL[1]), called)


def _draw(
    axis: Axes, averaged: Average, query_types: Types, key_types: Types, text: str, stack: str
) -> None:
    """A line for each A → B that has numbers: where causality hides B, there are none."""
    known = [averaged.mean[dim].values.tolist() for dim in ("query_type", "key_type")]
    layers = averaged.mean["layer"].values + 1
    for query in chosen(query_types, known[0], "plots"):
        for key in chosen(key_types, known[1], "plots"):
            pair = [part.sel(query_type=query, key_type=key).values for part in averaged]
            mean, low, high = pair
            if np.isnan(mean).all():
                continue
            style = line_style(query, key, *known)
            every = max(1, len(layers) // 12)
            axis.plot(layers, mean, label=f"{query} → {key}", markevery=every, **style)
            if not np.array_equal(low, high, equal_nan=True):
                shade(axis, layers, low, high, style["color"])
    if not axis.lines:
        expected, got = "a pair of types that was measured", f"{query_types} → {key_types}"
        raise ProbeError("plots", expected=expected, got=got)
    finish(axis, text, layers=len(layers), xlabel=layer_label(stack), ylabel=label(averaged.mean))


def _lift_axis(axis: Axes) -> None:
    """Logarithmic, with a line at 1: an even spread."""
    axis.set_yscale("log", nonpositive="mask", subs=[])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.axhline(1, color=GREY, linewidth=0.8, zorder=0)


def _same_scale(axes: np.ndarray, value: str) -> None:
    """One scale for all panels, so that they can be compared."""
    limits = np.array([axis.get_ylim() for axis in axes.flat])
    low, high = limits[:, 0].min(), limits[:, 1].max()
    if value in ("mass", "share", "entropy_ratio", "head_entropy_ratio"):
        low, high = -0.02, 1.02
    elif value != "lift":
        low = 0
    for axis in axes.flat:
        axis.set_ylim(low, high)


def _legend_of(axes: np.ndarray) -> None:
    """One legend of the lines in all panels, to the right of the first row."""
    lines = {str(line.get_label()): line for axis in axes.flat for line in axis.lines}
    lines = {name: line for name, line in lines.items() if not name.startswith("_")}
    text = "query → key"
    if len(lines) > _PAIRS:
        lines, text = _by_type(lines), "key by colour,\nquery by dash"
    legend(axes[0, -1], lines, title=text, handlelength=4, **RIGHT)


def _explanations(axes: np.ndarray) -> list[str]:
    """What the names of special tokens mean, and why a line ends before the last layer."""
    lines = [line for axis in axes.flat for line in axis.lines if " → " in str(line.get_label())]
    drawn = {name for line in lines for name in str(line.get_label()).split(" → ")}
    notes = [f"{name}: {meaning}" for name, meaning in _MEANINGS.items() if name in drawn]
    for line in lines:
        known = np.flatnonzero(~np.isnan(np.asarray(line.get_ydata(), float)))
        if len(known) and known[-1] < len(np.asarray(line.get_xdata())) - 1:
            query, last = str(line.get_label()).split(" → ")[0], known[-1] + 1
            text = f"{line.get_label()} ends at layer {last}: later layers compute no {query} query"
            notes.append(text)
    return list(dict.fromkeys(notes))


def _by_type(lines: Mapping[str, Line2D]) -> dict[str, Line2D]:
    """Entries for key types and for query types, where entries for all pairs would be too many."""
    keys, queries = {}, {}
    for name, line in lines.items():
        query, key = name.split(" → ")
        keys[f"→ {key}"] = Line2D(
            [], [], linestyle="", color=line.get_color(), marker=line.get_marker()
        )
        queries[f"{query} →"] = Line2D([], [], color=DARK_GREY, linestyle=line.get_linestyle())
    return keys | queries
