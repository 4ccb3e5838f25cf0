"""The lines of `by_layer.py`: one for each A → B, over layers.

Colour and marker are those of the keys B, the dash is that of the queries A. In a figure with a
panel for each B, colour and marker are those of A.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from probe.errors import ProbeError
from probe.plots.arguments import chosen
from probe.plots.sample_mean import Average
from probe.plots.style import (
    DARK_GREY,
    GREY,
    LIGHT_GREY,
    RIGHT,
    finish,
    label,
    layer_label,
    legend,
    line_style,
    looks,
    panels,
    shade,
)

Types = str | Sequence[str] | None

_MEANINGS = {
    "cls": "the class token of the vision encoder",
    "other": "registers and filling of the vision encoder",
    "bos": "the first token of the prompt",
    "last": "the last token of the prompt",
}
MANY_PAIRS = 10  # with more, a panel has one key type, or the legend names types
_SMALL_PANEL, _COLUMNS = (3.4, 2.6), 3  # of a figure with a panel for each key type
_LABEL_WIDTH = 24  # letters of an axis' label in a line of such a panel


def draw_pairs(
    axis: Axes, averaged: Average, query_types: Types, key_types: Types, text: str, stack: str
) -> None:
    """A line for each A → B that has numbers: where causality hides B, there are none."""
    known = [averaged.mean[dim].values.tolist() for dim in ("query_type", "key_type")]
    for query, key in pairs_of(averaged, query_types, key_types):
        _line(axis, averaged, query, key, line_style(query, key, *known))
    if not axis.lines:
        expected = "a pair of types that was measured"
        got = f"{query_types} → {key_types}"
        raise ProbeError("plots", expected=expected, got=got)
    mark_gaps(axis, averaged)
    layers = int(averaged.mean["layer"].max()) + 1
    finish(axis, text, layers=layers, xlabel=layer_label(stack), ylabel=label(averaged.mean))


def mark_gaps(axis: Axes, averaged: Average) -> None:
    """Grey where layers have no number at all: those without softmax attention."""
    for layer in averaged.mean["layer"].values[~_has_numbers(averaged)]:
        axis.axvspan(layer + 0.5, layer + 1.5, color=LIGHT_GREY, alpha=0.5, linewidth=0, zorder=0)


def gap_notes(records: Mapping[str, xr.DataTree], stack: str) -> list[str]:
    """What the layers of a stack have that have no softmax attention, for a caption."""
    notes = []
    for record in records.values():
        for part in filter(None, record.attrs.get("without_attention", "").split("; ")):
            layers, kind = part.removeprefix(f"{stack} ").split(": ")
            if part.startswith(f"{stack} "):
                counted = ", ".join(str(int(layer) + 1) for layer in layers.split(", "))
                instead = "" if kind == "none" else f", with {kind} in its place"
                notes.append(f"grey: no attention of this kind in layer {counted}{instead}")
    return notes


def _has_numbers(averaged: Average) -> np.ndarray:
    """Which layers have a number for any A → B."""
    return averaged.mean.notnull().any(["query_type", "key_type"]).values


def pairs_of(averaged: Average, query_types: Types, key_types: Types) -> list[tuple[str, str]]:
    """The A → B among those asked for that have numbers: where causality hides B, there are
    none.
    """
    known = [averaged.mean[dim].values.tolist() for dim in ("query_type", "key_type")]
    queries = chosen(query_types, known[0], "plots")
    keys = chosen(key_types, known[1], "plots")
    measured = averaged.mean.notnull().any("layer")
    return [
        (query, key)
        for query in queries
        for key in keys
        if measured.sel(query_type=query, key_type=key)
    ]


def _line(axis: Axes, averaged: Average, query: str, key: str, style: Mapping[str, Any]) -> None:
    """The line of A → B with its band, if it has one."""
    has_numbers = _has_numbers(averaged)  # a line goes on over layers without attention
    layers = averaged.mean["layer"].values[has_numbers] + 1
    of_pair = [part.sel(query_type=query, key_type=key) for part in averaged]
    mean, low, high = (part.values[has_numbers] for part in of_pair)
    every = max(1, len(layers) // 12)
    axis.plot(layers, mean, label=f"{query} → {key}", markevery=every, **style)
    if not np.array_equal(low, high, equal_nan=True):
        shade(axis, layers, low, high, style["color"])


def draw_by_key(
    averaged: Average, pairs: Sequence[tuple[str, str]], stack: str, value: str
) -> np.ndarray:
    """A panel for each key type, in which a line has the look of its query type; the Axes drawn."""
    keys = list(dict.fromkeys(key for _, key in pairs))
    styles = looks(averaged.mean["query_type"].values.tolist())
    rows = -(-len(keys) // _COLUMNS)
    axes = panels(None, rows, _COLUMNS, _SMALL_PANEL, "plots").ravel()
    for axis in axes[len(keys) :]:
        axis.remove()
    axes = axes[: len(keys)]
    layers = int(averaged.mean["layer"].max()) + 1
    for axis, key in zip(axes, keys, strict=True):
        for query in [query for query, other in pairs if other == key]:
            _line(axis, averaged, query, key, styles[query]._asdict())
        mark_gaps(axis, averaged)
        finish(axis, f"→ {key}", layers=layers)
        if value == "lift":
            lift_axis(axis)
    for axis in axes[-_COLUMNS:]:
        axis.set_xlabel(layer_label(stack))
    for axis in axes[::_COLUMNS]:
        axis.set_ylabel(textwrap.fill(label(averaged.mean), _LABEL_WIDTH))
    same_scale(axes, value)
    lines = {str(line.get_label()): line for axis in axes for line in axis.lines}
    by_query = {f"{query} →": lines[f"{query} → {key}"] for query, key in reversed(pairs)}
    order = [f"{query} →" for query in styles if f"{query} →" in by_query]
    shown = {name: by_query[name] for name in order}
    legend(axes[min(_COLUMNS, len(axes)) - 1], shown, title="query", handlelength=4, **RIGHT)
    return axes


def lift_axis(axis: Axes) -> None:
    """Logarithmic, with a line at 1: an even spread."""
    axis.set_yscale("log", nonpositive="mask", subs=[])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.axhline(1, color=GREY, linewidth=0.8, zorder=0)


def same_scale(axes: np.ndarray, value: str) -> None:
    """One scale for all panels, so that they can be compared."""
    limits = np.array([axis.get_ylim() for axis in axes.flat])
    low = limits[:, 0].min()
    high = limits[:, 1].max()
    if value in ("mass", "share", "entropy_ratio", "head_entropy_ratio"):
        low, high = -0.02, 1.02
    elif value != "lift":
        low = 0
    for axis in axes.flat:
        axis.set_ylim(low, high)


def legend_of(axes: np.ndarray) -> None:
    """One legend of the lines in all panels, to the right of the first row."""
    lines = {str(line.get_label()): line for axis in axes.flat for line in axis.lines}
    lines = {name: line for name, line in lines.items() if not name.startswith("_")}
    text = "query → key"
    if len(lines) > MANY_PAIRS:
        lines = _by_type(lines)
        text = "key by colour,\nquery by dash"
    legend(axes[0, -1], lines, title=text, handlelength=4, **RIGHT)


def explanations(axes: np.ndarray) -> list[str]:
    """What the names of special tokens mean, and why a line ends before the last layer."""
    lines = [line for axis in axes.flat for line in axis.lines if " → " in str(line.get_label())]
    drawn: set[str] = set()
    for line in lines:
        drawn.update(str(line.get_label()).split(" → "))
    notes = [f"{name}: {meaning}" for name, meaning in _MEANINGS.items() if name in drawn]
    for line in lines:
        label = str(line.get_label())
        layers = np.asarray(line.get_xdata())
        values = np.asarray(line.get_ydata(), float)
        known = np.flatnonzero(~np.isnan(values))
        if len(known) and known[-1] < len(layers) - 1:
            query = label.split(" → ")[0]
            last = int(layers[known[-1]])
            notes.append(f"{label} ends at layer {last}: later layers compute no {query} query")
    return list(dict.fromkeys(notes))


def _by_type(lines: Mapping[str, Line2D]) -> dict[str, Line2D]:
    """Entries for key types and for query types, where entries for all pairs would be too many."""
    keys, queries = {}, {}
    for name, line in lines.items():
        query, key = name.split(" → ")
        keys[f"→ {key}"] = _like(line, linestyle="")
        queries[f"{query} →"] = _like(line, marker="", color=DARK_GREY)
    return keys | queries


def _like(line: Line2D, **changes: Any) -> Line2D:
    """An entry for a legend: a line's look, with changes."""
    entry = Line2D([], [])
    entry.update_from(line)
    entry.set(**changes)
    return entry
