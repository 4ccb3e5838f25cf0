"""Accuracy when vision tokens are dropped in a window of layers, and attention beside it: the
paper's Fig. 5.

    plots.dropped(results)           # a run of `probe drop`, what `drop_sweep` returned, or several of those by name

Source: arXiv 2501.03895, Fig. 5.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probe.evaluation.drop_effects import ATTENTION
from probe.plots.sample_mean import bootstrap
from probe.plots.style import caption, count_from_one, panels, title
from probe.plots.sweep import (
    LEGEND,
    PANEL,
    READING_LOOKS,
    SIMULTANEOUS,
    baselines,
    chosen_reading,
    dress,
    note,
    points,
    stack_of,
    windows_of,
)

ATTENTION_LOOKS = (
    ("response", "#D55E00", "s"),
    ("instruction", "#0072B2", "o"),
    ("compressed", "#009E73", "^"),
)
_SIDE = 3.6  # inches: attention beside Fig. 5


def dropped(
    results: Any,
    reading: str | None = None,
    size: int | None = None,
    value: str = "correct",
    *,
    seed: int = 0,
    ax: Any = None,
) -> Any:
    """Fig. 5: a point a window of layers, the untouched model and the two floors as lines. Returns
    Axes.

    The band holds at all windows at once (95 %, images redrawn). A filled point differs from the
    untouched model: the band of the paired differences leaves out zero. Where `results` hold
    attention, share and lift of vision stand beside it (an array of three Axes), from the same
    samples; with `ax` they do not.

    Args:
        reading: which one, of several; the first by default ("mask" in a run).
        size: layers of a window, where there are several sizes.
        value: any number of `probe.evaluation.drop_effects.VALUES`.

    Raises:
        ProbeError: a reading, a size of windows or a value that `results` do not have.
    """
    name, table = chosen_reading(results, reading)
    attention = _attention_in(results) if ax is None else None
    axes = panels(ax, 1, 1, PANEL, "plots.dropped")[0] if attention is None else _beside()
    windows = windows_of(table, size)
    baselines(axes[0], table, value)
    points(
        axes[0],
        table,
        windows,
        value,
        seed,
        READING_LOOKS[0],
        f"vision dropped ({name})",
        shaded=True,
    )
    dress(axes[0], table, windows, value, "Vision tokens dropped in a window of layers")
    axes[0].legend(**LEGEND, ncols=2)
    if attention is not None:
        for axis, shown in ((axes[1], "share"), (axes[2], "lift")):
            _attention(axis, attention, shown, table["image"].values, seed, stack_of(table))
    lines = [note(table, seed), SIMULTANEOUS]
    caption(axes, lines, {name: table}, ax is None)
    return axes[0] if attention is None else axes


def _attention_in(results: Any) -> xr.Dataset | None:
    there = isinstance(results, xr.DataTree) and ATTENTION in results.children
    return results[ATTENTION].to_dataset() if there else None


def _beside() -> np.ndarray:
    figure = plt.figure(figsize=(PANEL[0] + 0.6 + _SIDE, PANEL[1] + 0.4), layout="constrained")
    return np.array(
        list(figure.subplot_mosaic("AAB;AAC", width_ratios=(1.5, 1.5, 2)).values()), dtype=object
    )


def _attention(
    axis: Axes, attention: xr.Dataset, value: str, images: np.ndarray, seed: int, stack: str
) -> None:
    """Share or lift of vision, by layer of the stack, of each type of query but vision."""
    numbers = attention[value].transpose("sample", "layer", "query_type")
    for query, colour, marker in ATTENTION_LOOKS:
        if query not in numbers["query_type"].values:
            continue
        values = numbers.sel(query_type=query).values.astype(float)
        if np.isnan(values).all():
            continue
        _, groups = np.unique(images.astype(str), return_inverse=True)
        mean, low, high = bootstrap(values, np.ones_like(values), groups, seed=seed)
        layers = attention["layer"].values + 1
        axis.plot(
            layers,
            mean,
            color=colour,
            marker=marker,
            markersize=3.5,
            label=f"{query} → vision",
            markevery=max(1, len(layers) // 12),
        )
        axis.fill_between(layers, low, high, color=colour, alpha=0.16, linewidth=0)
    title(axis, {"share": "Attention on vision: share", "lift": "lift (1: an even spread)"}[value])
    count_from_one(axis.xaxis, attention.sizes["layer"])
    axis.set_xlim(0.5, attention.sizes["layer"] + 0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if value == "share":
        axis.set_ylim(0, 1)
        axis.legend(fontsize=7.5, frameon=False)
    else:
        axis.axhline(1, color="0.6", linewidth=0.8, zorder=0)
        axis.set_ylim(bottom=0)
        axis.set_xlabel(f"{stack} layer")
