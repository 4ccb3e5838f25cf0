"""Reducers beside random selection and a smaller image: are they better, on which questions, and
what do they save?

    plots.reducer_benchmark(answers, costs)      # of `Comparison`, whose methods have budgets
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.evaluation.reducer_benchmark import RANDOM, SMALLER
from probe.evaluation.reducer_benchmark import reducer_benchmark as benchmark_table
from probe.plots.style import (
    BLUE,
    DASHED,
    GREY,
    SKY,
    VERMILION,
    below,
    caption,
    figure_of,
    finish,
    heading,
    legend,
    panels,
    styled,
)

BY_BUDGET = (("o", BLUE), ("s", SKY), ("^", GREY))  # from the smallest budget on
HEIGHT, ROW = 2.7, 0.26  # inches of a panel with what is below it, and of each of its rows


@styled()
def reducer_benchmark(
    answers: xr.Dataset, costs: xr.Dataset | None = None, *, seed: int = 0, ax: Any = None
) -> Figure:
    """Three panels with a row a method: its difference to random selection at every budget, its
    score on the questions that a down-sampled image gets wrong and on the others, and how much
    faster it is than all tokens (with measured `costs`).

    How to read it: hollow marks in the first panel are not shown to be better than random, hollow
    ones in the last not shown to be faster. Bars are 95 % intervals. The two right panels are of
    the smallest budget.

    Args:
        answers: of a comparison whose methods have budgets.
        costs: of the same methods.
        ax: one Axes for each panel.

    Raises ProbeError for anything else.
    """
    table = benchmark_table(answers, costs, seed=seed)
    methods: Any = table[table["budget"] > 0]
    smallest: Any = methods[methods["budget"] == methods["budget"].min()]
    order = smallest.sort_values("over_random", na_position="last")["family"].tolist()[::-1]
    timed = "speed_up" in table
    size = (4.2, HEIGHT + ROW * len(order))
    axes = panels(ax, 1, 2 + timed, size, "plots.reducer_benchmark").ravel()
    _over_random(axes[0], methods, order)
    _difficulty(axes[1], smallest, order)
    if timed:
        _speed(axes[2], smallest, order)
    for axis in axes:
        axis.set_yticks(range(len(order)), order if axis is axes[0] else [])
        axis.set_ylim(len(order) - 0.4, -0.6)
    if ax is None:
        parts = filter(None, ("Reducers beside their controls", answers.attrs.get("model")))
        heading(figure_of(axes), " · ".join(parts))
    caption(axes, _notes(answers, smallest, timed), {"": answers}, ax is None)
    return figure_of(axes)


def _over_random(axis: Axes, methods: Any, order: list[str]) -> None:
    axis.axvline(0, color=GREY, linewidth=0.8, linestyle=DASHED)
    budgets = sorted(methods["budget"].unique())
    for number, budget in enumerate(budgets):
        marker, colour = BY_BUDGET[min(number, len(BY_BUDGET) - 1)]
        shift = 0.25 * (number - (len(budgets) - 1) / 2)
        of_budget: Any = methods[(methods["budget"] == budget) & (methods["family"] != RANDOM)]
        better = of_budget["over_random_low"] > 0
        _dots(axis, of_budget, order, "over_random", marker, colour, shift, better.to_numpy())
        axis.plot([], [], marker, color=colour, label=f"{budget} tokens")
    _spread_of_seeds(axis, methods, order)
    xlabel = "points above the mean of random selections"
    finish(axis, "Better than random?", xlabel=xlabel)
    legend(axis, ncols=2, **below(axis))


def _spread_of_seeds(axis: Axes, methods: Any, order: list[str]) -> None:
    """Random selection itself: from its worst to its best seed at the smallest budget."""
    of_random: Any = methods[methods["family"] == RANDOM]
    if of_random.empty or int(of_random["cases"].max()) < 2:
        return
    row = of_random.loc[of_random["budget"].idxmin()]
    ends = [row["worst_over_mean"], row["best_over_mean"]]
    axis.plot(ends, [order.index(RANDOM)] * 2, color=GREY, linewidth=5, alpha=0.5)


def _difficulty(axis: Axes, smallest: Any, order: list[str]) -> None:
    for row in smallest.to_dict("records"):
        place = order.index(row["family"])
        axis.plot([row["hard"], row["rest"]], [place] * 2, color=GREY, linewidth=0.8, zorder=0)
    _dots(axis, smallest, order, "hard", "o", VERMILION, -0.12)
    _dots(axis, smallest, order, "rest", "D", BLUE, 0.12)
    count = int(smallest["hard_questions"].max())
    axis.plot([], [], "o", color=VERMILION, label=f"wrong when down-sampled ({count} questions)")
    axis.plot([], [], "D", color=BLUE, label="the others")
    finish(axis, "On which questions?", xlabel="mean score (%)", xlim=(-4, 104))
    legend(axis, **below(axis))


def _speed(axis: Axes, smallest: Any, order: list[str]) -> None:
    axis.axvline(1, color=GREY, linewidth=0.8, linestyle=DASHED)
    faster = (smallest["speed_up_low"] > 1).to_numpy()
    _dots(axis, smallest, order, "speed_up", "o", BLUE, 0.0, faster)
    places = [order.index(family) for family in smallest["family"]]
    axis.plot(smallest["counted"], places, "|", color=VERMILION, markersize=9, markeredgewidth=1.6)
    axis.plot([], [], "o", color=BLUE, label="measured, to the first token")
    axis.plot([], [], "|", color=VERMILION, markeredgewidth=1.6, label="counted operations")
    finish(axis, "Faster?", xlabel="times faster than all tokens", xlim=(0, None))
    legend(axis, **below(axis))


def _dots(
    axis: Axes,
    rows: pd.DataFrame,
    order: list[str],
    name: str,
    marker: str,
    colour: str,
    shift: float,
    filled: np.ndarray | None = None,
) -> None:
    """A mark with its interval for each row; hollow where `filled` is False."""
    filled = np.ones(len(rows), dtype=bool) if filled is None else filled
    for row, is_filled in zip(rows.to_dict("records"), filled, strict=True):
        value = row[name]
        low = row[f"{name}_low"]
        high = row[f"{name}_high"]
        if np.isnan(value):
            continue
        below = max(value - low, 0)
        above = max(high - value, 0)
        bars = None if np.isnan(low) else [[below], [above]]
        axis.errorbar(
            value,
            order.index(row["family"]) + shift,
            xerr=bars,
            fmt=marker,
            color=colour,
            markerfacecolor=colour if is_filled else "white",
            elinewidth=0.8,
        )


def _notes(answers: xr.Dataset, smallest: Any, timed: bool) -> list[str]:
    tokens = int(smallest["budget"].iloc[0])
    notes = [
        f"{answers.attrs.get('benchmark')}: {answers.sizes['sample']} questions; bars: 95 % "
        f"bootstrap intervals over images, paired; middle and right: {tokens} tokens; a hollow "
        "mark is not shown to be better than random, or faster",
        f"{SMALLER} makes the nearest square number of tokens, and is wrong on the questions by "
        "which the middle panel is split; methods inside the LLM leave their tokens from a layer "
        "on, and have more before it",
    ]
    if timed:
        notes.append("time: from pixels to the first token, on this machine, methods in turn")
    return notes
