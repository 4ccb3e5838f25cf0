"""Lines over layers, one for each A → B: attention by type (the paper's Fig. 2) and its entropy
(Fig. 3)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.errors import ProbeError
from probe.plots.arguments import Records, labelled, of_records
from probe.plots.sample_mean import average, sampling
from probe.plots.style import GREY, caption, figure_of, heading, panels, styled
from probe.plots.type_lines import (
    MANY_PAIRS,
    Types,
    draw_by_key,
    draw_pairs,
    explanations,
    gap_notes,
    legend_of,
    lift_axis,
    pairs_of,
    same_scale,
)
from probe.records import entropy_ratio

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

    With more than ten pairs (`types="fine"`) one record has a panel for each key type B, in which
    lines have the colours of their queries A; the first panel is returned.

    Returns Axes for one record, and for several (a list, or {label: record}) a Figure with a panel
    a record on one scale. Source: arXiv 2501.03895, Fig. 2 and Eq. 4 (`value="mass"`). Raises
    ProbeError for a value, stack, type or weights that a record does not have, and for an `ax` of
    another number of Axes.
    """
    called = "plots.mass"
    if value not in _VALUES:
        raise ProbeError(called, expected=f"value of {', '.join(_VALUES)}", got=repr(value))
    records = labelled(record, called)
    averages = [average(one, stack, value, weights=weights, seed=seed) for one in records.values()]
    single = isinstance(record, xr.DataTree)
    pairs = pairs_of(averages[0], query_types, key_types)
    if single and ax is None and len(pairs) > MANY_PAIRS:
        axes = draw_by_key(averages[0], pairs, stack, value)
        heading(figure_of(axes), f"{_TITLES[value]} · {next(iter(records))}")
        notes = [
            *sampling(records, stack, weights, seed),
            *gap_notes(records, stack),
            *explanations(axes),
        ]
        caption(axes, notes, records, own=True)
        return axes[0]
    axes = _panels(ax, 1, len(records), called)
    for axis, name, averaged in zip(axes.flat, records, averages, strict=True):
        text = f"{_TITLES[value]}\n{name}" if single else name
        draw_pairs(axis, averaged, query_types, key_types, text, stack)
        if value == "lift":
            lift_axis(axis)
    same_scale(axes, value)
    if ax is None and not single:
        heading(figure_of(axes), _TITLES[value])
    legend_of(axes)
    notes = [*_sampling(records, stack, weights, seed), *explanations(axes)]
    caption(axes, notes, records, own=ax is None)
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
    records = labelled(record, called)
    values = _ENTROPIES[which]
    if ratio:
        for one in records.values():
            entropy_ratio(one, stack, values[0])  # says what to do about a record without
        values = [f"{value}_ratio" for value in values]
    averages = [
        [average(one, stack, value, weights=weights, seed=seed) for value in values]
        for one in records.values()
    ]
    if len(records) == 1:  # the panels of one record are next to each other
        axes = _panels(ax, 1, len(values), called)
        columns = axes
    else:
        axes = _panels(ax, len(values), len(records), called)
        columns = axes.T
    for column, name, of_record in zip(columns, records, averages, strict=True):
        for axis, value, averaged in zip(column, values, of_record, strict=True):
            draw_pairs(axis, averaged, query_types, key_types, f"{_TITLES[value]}\n{name}", stack)
            if ratio:
                axis.axhline(1, color=GREY, linewidth=0.8, zorder=0)
    same_scale(axes, values[0])
    legend_of(axes)
    notes = [*_sampling(records, stack, weights, seed), *explanations(axes)]
    caption(axes, notes, records, own=ax is None)
    return ax if isinstance(ax, Axes) else figure_of(axes)


def _sampling(records: Mapping[str, xr.DataTree], stack: str, weights: str, seed: int) -> list[str]:
    return [*sampling(records, stack, weights, seed), *gap_notes(records, stack)]


def _panels(ax: Any, rows: int, columns: int, called: str) -> np.ndarray:
    return panels(ax, rows, columns, (_PANEL[0] + _LEGEND / columns, _PANEL[1]), called)
