"""Fewer vision tokens: which accuracy is left, against their number and against the time to the
first token.

    plots.reductions(answers, costs)      # of `Comparison`; without measured costs one panel
    plots.reductions(answers, costs, published="visionzip_llava15_7b")

With published numbers both axes are in percent of the first method: they are of another model and
other questions, so that only the shape of the curves can be compared.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype

from probe.errors import ProbeError, reason_of
from probe.evaluation.headline import Headline
from probe.evaluation.method_scores import method_scores
from probe.plots.style import (
    BLACK,
    DASHED,
    DOTTED,
    GREY,
    Look,
    below,
    caption,
    figure_of,
    finish,
    heading,
    legend,
    looks,
    panels,
    shade,
    styled,
)
from probe.records.published import TABLES
from probe.records.published import published as published_table

COLUMNS = ("method", "vision_tokens", "percent_of_vanilla")
ONE_VIEW = 576  # vision tokens of LLaVA-1.5
ALL_TOKENS = {"visionzip_llava_next_7b": 2880}  # of the model of a published table, if others


@dataclass(frozen=True)
class Overlay:
    """Published numbers of a model that has `tokens` vision tokens: a table of `COLUMNS`."""

    name: str
    table: pd.DataFrame
    tokens: int

    @classmethod
    def of(cls, source: str | Path, tokens: int | None = None) -> "Overlay":
        """From the name of a table of `probe.records.published`, or a CSV file.

        Raises ProbeError where it can't be read or drawn.
        """
        name = str(source)
        table = published_table(name) if name in TABLES else _from_file(source)
        if missing := [column for column in COLUMNS if column not in table]:
            expected = f"columns {', '.join(COLUMNS)}"
            got = f"no {missing[0]} in '{source}'"
            raise ProbeError("--published", expected=expected, got=got)
        for column in COLUMNS[1:]:
            if not is_numeric_dtype(table[column]):
                got = f"{table[column].tolist()[:3]} in '{source}'"
                raise ProbeError("--published", expected=f"numbers in {column}", got=got)
        return cls(Path(name).name, table, tokens or ALL_TOKENS.get(name, ONE_VIEW))


def _from_file(path: str | Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        got = f"'{path}' ({reason_of(error)})"
        raise ProbeError(
            "--published", expected="a published table or a CSV file", got=got
        ) from error


@styled()
def reductions(
    answers: xr.Dataset,
    costs: xr.Dataset | None = None,
    *,
    published: Overlay | str | Path | None = None,
    seed: int = 0,
    ax: Any = None,
) -> Figure:
    """Accuracy against vision tokens, a line a family of methods; with measured `costs` a second
    panel against time.

    How to read it: the star is the first method (all tokens), the dashed line its accuracy. The
    further left a method stays near that line, the better. Bars are 95 % intervals, images redrawn.

    Args:
        answers: of a comparison of methods.
        costs: of the same methods.
        published: a table of `probe.records.published` or a CSV (with a model of other than 576
            tokens: an `Overlay`), drawn hollow and dotted.
        ax: one Axes for each panel.

    Raises ProbeError for anything but a comparison's answers and such a file.
    """
    if published is not None and not isinstance(published, Overlay):
        published = Overlay.of(published)
    headline = Headline(answers)
    columns = {headline.name: "y", f"{headline.name}_low": "low", f"{headline.name}_high": "high"}
    table = method_scores(answers, seed=seed).rename(columns=columns)
    latency = None if costs is None else costs.get("latency")
    axes = panels(ax, 1, 1 if latency is None else 2, (5.6, 4.4), "plots.reductions").ravel()
    ylabel = headline.label
    unit = "mean over layers"
    tokens = table["vision_tokens"]
    if published is not None:
        shares = 100 / table["y"].iloc[0]
        table = table.assign(**{name: shares * table[name] for name in ("low", "high", "y")})
        tokens = 100 * tokens / tokens.iloc[0]
        ylabel = f"accuracy (% of “{table['method'].iloc[0]}”)"
        unit = "% of all"
    families = looks(table["family"].iloc[1:])
    _draw(axes[0], table.assign(x=tokens), families)
    if published is not None:
        _draw_published(axes[0], published, families)
    xlabel = f"vision tokens of an LLM layer ({unit})"
    finish(axes[0], "Accuracy against vision tokens", xlabel=xlabel, ylabel=ylabel)
    legend(axes[0], ncols=3, **below(axes[0]))
    if latency is not None:
        times = 1e3 * latency.sel(case=table["method"].values)
        quartiles = {
            name: times.quantile(share, "repeat").values
            for name, share in (("x_low", 0.25), ("x", 0.5), ("x_high", 0.75))
        }
        _draw(axes[1], table.assign(**quartiles), families)
        xlabel = "time from pixels to the first token (ms, median)"
        finish(axes[1], "and against time", xlabel=xlabel, ylabel=ylabel)
    for axis in axes:
        axis.margins(x=0.06)
    if ax is None:
        parts = filter(None, ("Fewer vision tokens", answers.attrs.get("model")))
        heading(figure_of(axes), " · ".join(parts))
    caption(axes, _notes(answers, table, latency, published), {"": answers}, ax is None)
    return figure_of(axes)


def _draw(axis: Axes, table: pd.DataFrame, families: dict[str, Look]) -> None:
    """The first method as a star, the others with their intervals, a line a family."""
    first = table.iloc[0]
    axis.axhline(first["y"], color=GREY, linewidth=0.8, linestyle=DASHED)
    axis.plot(
        first["x"],
        first["y"],
        label=str(first["method"]),
        color=BLACK,
        marker="*",
        markersize=11,
        linestyle="none",
    )
    for family, look in families.items():
        rows = table.iloc[1:].query("family == @family").sort_values("x")
        if rows[rows["budget"] > 0].duplicated("budget").any():
            _draw_seeds(axis, rows, family, look)
            continue
        below = (rows["y"] - rows["low"]).clip(lower=0)
        above = (rows["high"] - rows["y"]).clip(lower=0)
        bars = [below, above]
        spread = (
            [rows["x"] - rows["x_low"], rows["x_high"] - rows["x"]] if "x_low" in rows else None
        )
        axis.errorbar(
            rows["x"],
            rows["y"],
            bars,
            spread,
            label=family,
            color=look.color,
            marker=look.marker,
            linestyle=look.linestyle,
            elinewidth=0.8,
        )


def _draw_seeds(axis: Axes, rows: pd.DataFrame, family: str, look: Look) -> None:
    """Several draws of each budget: their mean, and a band from the worst to the best."""
    budgets: Any = rows.groupby("budget", sort=True)
    count = int(budgets.size().max())
    x = budgets["x"].mean()
    y = budgets["y"]
    axis.plot(x, y.mean(), label=f"{family} (worst to best of {count})", **look._asdict())
    shade(axis, x.to_numpy(), y.min().to_numpy(), y.max().to_numpy(), look.color)


def _draw_published(axis: Axes, published: Overlay, families: dict[str, Look]) -> None:
    for method, rows in published.table.groupby("method", sort=False):
        look = families.get(str(method), Look(GREY, "p"))
        x = 100 * rows["vision_tokens"] / published.tokens
        style = look._replace(linestyle=DOTTED)._asdict()
        name = f"{method}, published"
        axis.plot(x, rows["percent_of_vanilla"], markerfacecolor="white", label=name, **style)


def _notes(
    answers: xr.Dataset,
    table: pd.DataFrame,
    latency: xr.DataArray | None,
    published: Overlay | None,
) -> list[str]:
    questions = table["questions"].iloc[0]
    images = table["images"].iloc[0]
    asked = f"{answers.attrs.get('benchmark')}: {questions} questions on"
    if images == 1:
        notes = [f"{asked} one image, which gives no intervals"]
    else:
        notes = [f"{asked} {images} images; bars: 95 % bootstrap intervals over images"]
    if latency is not None:
        repeats = latency.sizes["repeat"]
        how = f"median and quartiles of {repeats}, methods in turn, on this machine"
        notes.append(f"time: {how}")
    if published is not None:
        notes.append(f"hollow: {published.name}, another model on other benchmarks")
    return notes
