"""Fewer vision tokens: what is still answered, against their number and against the time to the
first token.

    plots.reductions(answers, costs)                       # of `Comparison`; costs without a measurement: one panel
    plots.reductions(answers, costs, published="visionzip_llava15_7b.csv")

With published numbers both axes are shares of the first method's (another model on other questions:
only the shape of the curves can be compared).
"""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes

from probe.errors import ProbeError
from probe.evaluation.headline import Headline
from probe.evaluation.scores import scores
from probe.plots.style import caption, panels, title

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#999999", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
FIRST = {"color": "#000000", "marker": "*", "markersize": 11, "linestyle": "none"}
COLUMNS = ("method", "vision_tokens", "percent_of_vanilla")
PUBLISHED_TOKENS = 576  # of LLaVA-1.5


def reductions(
    answers: xr.Dataset,
    costs: xr.Dataset | None = None,
    *,
    published: str | Path | None = None,
    published_tokens: int = PUBLISHED_TOKENS,
    seed: int = 0,
    ax: Any = None,
) -> np.ndarray:
    """A line a family of methods, accuracy against vision tokens; with measured `costs` a second
    panel against time.

    published: a CSV of method, vision_tokens (of `published_tokens`) and percent_of_vanilla, drawn
    hollow and dashed. Raises ProbeError for other than a comparison's answers and such a file.
    """
    table = scores(answers, seed=seed)
    timed = costs is not None and "latency" in costs
    axes = panels(ax, 1, 1 + timed, (5.6, 4.4), "plots.reductions").ravel()
    relative = published is not None
    table = (
        _relative(table, Headline(answers).name)
        if relative
        else _absolute(table, Headline(answers).name)
    )
    whole = float(table["vision_tokens"].iloc[0])
    looks = dict(zip(_families(table), zip(cycle(COLOURS), cycle(MARKERS)), strict=False))
    tokens = 100 * table["vision_tokens"] / whole if relative else table["vision_tokens"]
    _draw(axes[0], table, tokens, looks)
    if published is not None:
        _overlay(axes[0], _read(published), published_tokens, looks)
    axes[0].set_xlabel(
        "vision tokens of an LLM layer" + (" (% of all)" if relative else " (mean over layers)")
    )
    title(axes[0], "Accuracy against vision tokens")
    if timed:
        assert costs is not None
        milliseconds = 1e3 * costs["latency"].sel(case=table["method"].values)
        _draw(axes[1], table, milliseconds.median("repeat").values, looks)
        axes[1].set_xlabel("time from pixels to the first token (ms, median)")
        title(axes[1], "and against time")
    label = Headline(answers).label
    for axis in axes:
        axis.set_ylabel(f"accuracy (% of “{table['method'].iloc[0]}”)" if relative else label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.06)
    axes[0].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=3)
    _note(axes, answers, table, costs if timed else None, published, ax is None)
    return axes


def _absolute(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table.rename(columns={name: "y", f"{name}_low": "low", f"{name}_high": "high"})


def _relative(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """In percent of the first method's number."""
    table = _absolute(table, name)
    return table.assign(
        **{column: 100 * table[column] / table["y"].iloc[0] for column in ("low", "high", "y")}
    )


def _families(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["family"].iloc[1:]))


def _draw(axis: Axes, table: pd.DataFrame, x: Any, looks: dict[str, tuple[str, str]]) -> None:
    """The first method as a star with its level, the others with their intervals, a line a
    family.
    """
    table = table.assign(x=np.asarray(x))
    first = table.iloc[0]
    axis.axhline(first["y"], color="0.6", linewidth=0.8, linestyle=(0, (4, 3)))
    axis.plot(first["x"], first["y"], label=str(first["method"]), **FIRST)
    for family, (colour, marker) in looks.items():
        rows = table.iloc[1:].query("family == @family").sort_values("x")
        below, above = (
            (rows["y"] - rows["low"]).clip(lower=0),
            (rows["high"] - rows["y"]).clip(lower=0),
        )
        axis.errorbar(
            rows["x"],
            rows["y"],
            [below, above],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.3,
            elinewidth=0.8,
            capsize=2,
            label=family,
        )


def _read(path: str | Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ProbeError("--published", expected="a CSV file", got=f"'{path}' ({error})") from error
    if missing := [name for name in COLUMNS if name not in table]:
        raise ProbeError(
            "--published",
            expected=f"columns {', '.join(COLUMNS)}",
            got=f"no {missing[0]} in '{path}'",
        )
    return table


def _overlay(
    axis: Axes, published: pd.DataFrame, tokens: int, looks: dict[str, tuple[str, str]]
) -> None:
    for method, rows in published.groupby("method", sort=False):
        colour, marker = looks.get(str(method), ("0.45", "p"))
        axis.plot(
            100 * rows["vision_tokens"] / tokens,
            rows["percent_of_vanilla"],
            color=colour,
            marker=marker,
            markersize=6,
            mfc="white",
            linestyle=(0, (2, 2)),
            label=f"{method}, published",
        )


def _note(
    axes: np.ndarray,
    answers: xr.Dataset,
    table: pd.DataFrame,
    costs: Any,
    published: Any,
    own: bool,
) -> None:
    lines = [
        f"{answers.attrs.get('benchmark')}: {table['questions'].iloc[0]} questions on {table['images'].iloc[0]} "
        "images; bars: 95 % bootstrap intervals over images"
    ]
    if costs is not None:
        lines.append(f"time: median of {costs.sizes['repeat']}, methods in turn, on this machine")
    if published is not None:
        lines.append(f"hollow: {Path(published).name}, another model on other benchmarks")
    caption(axes, lines, {"": answers}, own)
