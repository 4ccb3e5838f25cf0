"""How the cases of a sweep are drawn: a value with its band, next to the untouched model and the
baselines. `sweep.py` has the figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes

from probe.errors import ProbeError, one_of
from probe.evaluation.drop_effects import (
    BASELINES,
    dropped_layers,
    tables_of,
    values_of,
    window_cases,
)
from probe.evaluation.headline import Headline
from probe.plots.style import Look, finish, looks, shade
from probe.records.bootstrap import Interval, band
from probe.records.schema import as_text

Windows = Mapping[str, tuple[int, ...]]  # name of a case -> its layers, from 0

LABELS = {
    "kl": "KL from untouched (nat)",
    "total_variation": "total variation from untouched",
    "first_token_changed": "first token changed (%)",
    "gold_logprob": "log-probability of the gold answer (nat)",
    "donor_answer_given": "the other image's answer is given (%)",
}
PERCENT = ("correct", "first_token_changed", "donor_answer_given")
# A distance from the untouched model is 0 there and never below: no band of it includes 0, so that
# excluding 0 says nothing.
DISTANCES = ("kl", "total_variation", "first_token_changed")


def chosen_mode(results: Any, mode: str | None) -> tuple[str, xr.Dataset]:
    """The mode of dropping asked for, and its table; by default "mask", or the first one."""
    tables = tables_of(results)
    if mode is None:
        mode = "mask" if "mask" in tables else next(iter(tables))
    one_of("plots", "a mode of", mode, tables)
    return mode, tables[mode]


def windows_of(table: xr.Dataset, size: int | None) -> dict[str, tuple[int, ...]]:
    """The cases that are windows, with their layers. Raises ProbeError where there are none."""
    layers = dropped_layers(table)
    windows = {name: layers[name] for name in window_cases(table, size)}
    if not windows:
        raise no_windows(size)
    return windows


def no_windows(size: int | None) -> ProbeError:
    """The error for a sweep over other cases."""
    return ProbeError(
        "plots",
        expected="a sweep over windows" + (f" of {size} layers" if size else ""),
        got="other cases",
        fix="add windows(4) to its cases",
    )


def in_units(table: xr.Dataset, value: str) -> Float[np.ndarray, "sample case"]:
    """The values as their axis shows them: shares in percent."""
    return values_of(table, value) * (100 if value in PERCENT else 1)


def estimates(table: xr.Dataset, value: str) -> Float[np.ndarray, "case"]:
    """The number of each case: of "correct" the benchmark's official one, else the mean."""
    if value == "correct":
        return Headline(table)(np.ones(table.sizes["sample"], dtype=np.int64))
    values = in_units(table, value)
    means = []
    for of_case in values.T:
        has_value = not np.isnan(of_case).all()
        means.append(np.nanmean(of_case) if has_value else np.nan)
    return np.array(means)


def curve(
    table: xr.Dataset, value: str, cases: Sequence[int], seed: int, paired: bool = False
) -> Interval:
    """`estimates` of these cases, with one band over all of them.

    paired: of their differences to the untouched model.
    """
    if value == "correct":
        return Headline(table).curve(cases, seed, paired)
    values = in_units(table, value)
    baseline = values[:, :1] if paired else 0.0
    return band(values[:, list(cases)] - baseline, table["image"].values, seed=seed)


def highest(table: xr.Dataset, value: str) -> float | None:
    """The highest possible number, None without one."""
    if value == "correct":
        return Headline(table).top
    return 100 if value in PERCENT else None


def within(interval: Interval, table: xr.Dataset, value: str) -> tuple[np.ndarray, np.ndarray]:
    """The band between the lowest and the highest possible number."""
    low = interval.low
    high = interval.high
    lowest = None if value == "gold_logprob" else 0
    top = highest(table, value)
    if lowest is None and top is None:
        return low, high
    return np.clip(low, lowest, top), np.clip(high, lowest, top)


def significance(value: str) -> str:
    """What a filled point means, for a caption."""
    if value in DISTANCES:
        return "a distance from the untouched model cannot be below 0: not tested against it"
    return "filled points: differs from the untouched model (paired; all windows at once)"


def draw_baselines(axis: Axes, table: xr.Dataset, value: str) -> None:
    """The untouched model, no vision and another image, as lines."""
    names = table["case"].values[:BASELINES].tolist()
    numbers = estimates(table, value)[:BASELINES]
    for (name, look), number in zip(looks(names).items(), numbers, strict=True):
        if not np.isnan(number):
            axis.axhline(
                number,
                label=name,
                zorder=1,
                color=look.color,
                linestyle=look.linestyle,
                linewidth=1.3,
            )


def draw_windows(
    axis: Axes,
    table: xr.Dataset,
    windows: Windows,
    value: str,
    seed: int,
    look: Look,
    label: str,
    *,
    shift: float = 0.0,
    shaded: bool = False,
) -> None:
    """A point at the middle of each window: see `draw_points`."""
    x = middles(windows) + shift
    draw_points(axis, table, list(windows), x, value, seed, look, label, shaded=shaded)


def draw_points(
    axis: Axes,
    table: xr.Dataset,
    names: Sequence[str],
    x: Float[np.ndarray, " case"],
    value: str,
    seed: int,
    look: Look,
    label: str,
    *,
    shaded: bool = False,
) -> None:
    """A point for each of these cases, with one band over all of them: shaded, or as bars.

    Points are filled where the band of the differences to the untouched model excludes zero;
    of a distance from the untouched model, which is never below zero, no point is.
    """
    order = table["case"].values.tolist()
    cases = [order.index(name) for name in names]
    interval = curve(table, value, cases, seed, paired=False)
    difference = curve(table, value, cases, seed, paired=True)
    estimate = interval.estimate
    low, high = within(interval, table, value)
    colour = look.color
    if shaded:
        shade(axis, x, low, high, colour)
        axis.plot(x, estimate, color=colour, zorder=3)
    else:
        bars = np.abs(np.stack([estimate - low, high - estimate]))
        axis.errorbar(x, estimate, bars, color=colour, linestyle="", linewidth=1.1, zorder=3)
    excludes_zero = (difference.low > 0) | (difference.high < 0)
    differs = excludes_zero & (value not in DISTANCES)
    style = {"color": colour, "marker": look.marker, "markersize": 5}
    for which, face in ((differs, colour), (~differs, "white")):
        axis.plot(x[which], estimate[which], **style, linestyle="", markerfacecolor=face, zorder=4)
    axis.plot([], [], linestyle="-" if shaded else "", label=label, **style)  # for the legend


def middles(windows: Windows) -> Float[np.ndarray, " window"]:
    """The middle of each window on an axis that counts layers from 1."""
    return np.array([np.mean(layers) + 1 for layers in windows.values()])


def finish_windows(
    axis: Axes, table: xr.Dataset, windows: Windows, value: str, text: str, **labels: str
) -> None:
    """Title, a tick at the middle of each window, and the scale of the value."""
    rotation = 45 if len(windows) > 10 else 0
    axis.set_xticks(middles(windows), list(windows), rotation=rotation)
    axis.set_xlim(0.5, table.sizes["layer"] + 0.5)
    model = table.attrs.get("model", "")
    settings: dict[str, Any] = {"xlabel": f"{stack_of(table)} layers without vision tokens"}
    settings |= value_axis(table, value) | labels
    finish(axis, f"{text}\n{model}", **settings)


def value_axis(table: xr.Dataset, value: str) -> dict[str, Any]:
    """Label of the vertical axis, and its limits where the value has a highest number."""
    label = Headline(table).label if value == "correct" else LABELS[value]
    top = highest(table, value)
    return {"ylabel": label} | ({} if top is None else {"ylim": (-0.02 * top, 1.02 * top)})


def stack_of(table: xr.Dataset) -> str:
    """The stack that the layers belong to, as axes name it."""
    return "pre-fusion" if table.attrs.get("stack") == "prefusion" else "LLM"


def note(table: xr.Dataset, seed: int, over: str = "all windows") -> str:
    """How questions became points, for a caption."""
    headline = Headline(table)
    questions = table.sizes["sample"]
    number = "mean" if headline.is_mean else headline.name
    images = len(np.unique(as_text(table["image"].values)))
    asked = f"{number} of {questions} questions on"
    if images == 1:
        return f"{asked} one image, which gives no bands"
    bands = f"95 % bands over {over} at once, images redrawn (seed {seed})"
    return f"{asked} {images} images; {bands}"
