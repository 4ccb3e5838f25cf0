"""Readings of "dropped" compared: each on one axis, and whose answer is given when text reads
another image.

plots.readings(results)          # mask, freeze, remove, zero, swap ... window by window
plots.swaps(results)
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from probe.errors import ProbeError
from probe.evaluation.drop_effects import tables_of, window_cases
from probe.plots.style import caption, panels
from probe.plots.sweep import (
    LEGEND,
    PANEL,
    READING_LOOKS,
    SIMULTANEOUS,
    baselines,
    dress,
    estimates,
    no_windows,
    note,
    points,
    windows_of,
)


def readings(
    results: Any, size: int | None = None, value: str = "correct", *, seed: int = 0, ax: Any = None
) -> Axes:
    """Every reading of "dropped" on one axis, side by side within each window; bars hold at all
    windows at once.
    """
    tables = {
        name: table for name, table in tables_of(results).items() if window_cases(table, size)
    }
    if not tables:
        raise no_windows(size)
    axis = panels(ax, 1, 1, (PANEL[0] + 1.4, PANEL[1]), "plots.readings")[0, 0]
    first = next(iter(tables.values()))
    windows = windows_of(first, size)
    baselines(axis, first, value)
    width = 0.75 * min(map(len, windows.values()))
    for at, (name, table) in enumerate(tables.items()):
        look = READING_LOOKS[at % len(READING_LOOKS)]
        shift = width * ((at + 0.5) / len(tables) - 0.5)
        points(axis, table, windows_of(table, size), value, seed, look, name, shift=shift)
    dress(axis, first, windows, value, "Every reading of “dropped”")
    axis.legend(**LEGEND, ncols=3)
    caption(np.array([axis]), [note(first, seed), SIMULTANEOUS], tables, ax is None)
    return axis


def swaps(results: Any, size: int | None = None, *, seed: int = 0, ax: Any = None) -> Axes:
    """Where text reads another image in a window: how often the right answer is given, and the
    other image's.
    """
    found = [table for table in tables_of(results).values() if "donor_answer_given" in table]
    if not found:
        raise ProbeError("plots.swaps", expected="a sweep with how='swap'", got="none")
    table, axis = found[0], panels(ax, 1, 1, PANEL, "plots.swaps")[0, 0]
    windows = windows_of(table, size)
    for value, look, label in (
        ("correct", READING_LOOKS[1], "the right answer"),
        ("donor_answer_given", READING_LOOKS[0], "the answer given about the other image"),
    ):
        points(axis, table, windows, value, seed, look, label, shaded=True)
        untouched = estimates(table, value)[0]
        if not np.isnan(untouched):
            dots = {"color": look[0], "linewidth": 1, "linestyle": (0, (1, 1.5))}
            axis.axhline(untouched, label="  the same, untouched", **dots)
    dress(axis, table, windows, "correct", "Text reads another image in a window of layers")
    axis.set_ylabel("answers (%)")
    axis.set_xlabel("layers that read another image")
    axis.legend(**LEGEND)
    caption(np.array([axis]), [note(table, seed)], {"swap": table}, ax is None)
    return axis
