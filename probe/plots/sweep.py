"""How a case of a sweep is drawn: a value with its band, beside the untouched model and the floors.

What the figures of dropping share (`dropping.py`, `comparing.py`, `depths.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes

from probe.errors import ProbeError
from probe.evaluation.drop_effects import (
    BASELINES,
    dropped_layers,
    tables_of,
    values_of,
    window_cases,
)
from probe.evaluation.headline import Headline
from probe.plots.style import title
from probe.records.bootstrap import Interval, band

Windows = Mapping[str, tuple[int, ...]]  # name of a case -> its layers, from 0

BASELINE_LOOKS = (("#000000", "-"), ("#009E73", (0, (1, 1.2))), ("#CC79A7", (0, (6, 1.5, 1, 1.5))))
READING_LOOKS = (
    ("#D55E00", "o"),
    ("#0072B2", "s"),
    ("#56B4E9", "D"),
    ("#999999", "v"),
    ("#E69F00", "^"),
    ("#CC79A7", "P"),
)
LABELS = {
    "kl": "KL from untouched (nat)",
    "total_variation": "total variation from untouched",
    "first_token_changed": "first token changed (%)",
    "gold_logprob": "log-probability of the gold answer (nat)",
    "donor_answer_given": "the other image's answer is given (%)",
}
PERCENT = ("correct", "first_token_changed", "donor_answer_given")
PANEL = (5.4, 3.9)
LEGEND = {
    "fontsize": 8,
    "frameon": False,
    "handlelength": 3.2,
    "loc": "upper left",
    "bbox_to_anchor": (0, -0.2),
}
SIMULTANEOUS = "filled points: differs from the untouched model (paired; all windows at once)"


def chosen_reading(results: Any, reading: str | None) -> tuple[str, xr.Dataset]:
    """The reading asked for; by default "mask", or the first there is."""
    tables = tables_of(results)
    default = "mask" if "mask" in tables else next(iter(tables))
    if reading is not None and reading not in tables:
        raise ProbeError("plots", expected=f"a reading of {', '.join(tables)}", got=repr(reading))
    return reading or default, tables[reading or default]


def windows_of(table: xr.Dataset, size: int | None) -> dict[str, tuple[int, ...]]:
    """The cases that are windows, with their layers. Raises ProbeError where there are none."""
    layers = dropped_layers(table)
    found = {name: layers[name] for name in window_cases(table, size)}
    if not found:
        raise no_windows(size)
    return found


def no_windows(size: int | None) -> ProbeError:
    """What to say to a sweep over other cases."""
    expected = "a sweep over windows" + (f" of {size} layers" if size else "")
    return ProbeError(
        "plots", expected=expected, got="other cases", fix="add windows(4) to its cases"
    )


def in_units(table: xr.Dataset, value: str) -> Float[np.ndarray, "sample case"]:
    """The values as their axis shows them: percent where they are shares."""
    return values_of(table, value) * (100 if value in PERCENT else 1)


def estimates(table: xr.Dataset, value: str) -> Float[np.ndarray, "case"]:
    """The number of each case: of "correct" the benchmark's official one, else the mean."""
    if value == "correct":
        return Headline(table)(np.ones(table.sizes["sample"], dtype=np.int64))
    values = in_units(table, value)
    return np.array([np.nanmean(case) if not np.isnan(case).all() else np.nan for case in values.T])


def curve(
    table: xr.Dataset, value: str, cases: Sequence[int], seed: int, paired: bool = False
) -> Interval:
    """`estimates` of these cases, with a band over all; `paired`: of their differences to the
    untouched model.
    """
    if value == "correct":
        return Headline(table).curve(cases, seed, paired)
    values = in_units(table, value)
    return band(
        values[:, list(cases)] - (values[:, :1] if paired else 0.0),
        table["image"].values,
        seed=seed,
    )


def top_of(table: xr.Dataset, value: str) -> float | None:
    """The largest number there is, None without one."""
    return Headline(table).top if value == "correct" else 100 if value in PERCENT else None


def label_of(table: xr.Dataset, value: str) -> str:
    return Headline(table).label if value == "correct" else LABELS[value]


def baselines(axis: Axes, table: xr.Dataset, value: str) -> None:
    """The untouched model and the two floors, as lines."""
    numbers = estimates(table, value)[:BASELINES]
    for name, number, (colour, dash) in zip(
        table["case"].values, numbers, BASELINE_LOOKS, strict=False
    ):
        if not np.isnan(number):
            axis.axhline(
                number, color=colour, linestyle=dash, linewidth=1.3, label=str(name), zorder=1
            )


def points(
    axis: Axes,
    table: xr.Dataset,
    windows: Windows,
    value: str,
    seed: int,
    look: tuple[str, str],
    label: str,
    *,
    shift: float = 0.0,
    shaded: bool = False,
) -> None:
    """Estimates at the middle of each window, with their simultaneous band (a shade, or bars)."""
    at = [table["case"].values.tolist().index(name) for name in windows]
    found, top = curve(table, value, at, seed), top_of(table, value)
    x = np.array([np.mean(layers) + 1 for layers in windows.values()]) + shift
    colour, marker = look
    low, high = (bound if top is None else bound.clip(0, top) for bound in (found.low, found.high))
    if shaded:
        axis.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        axis.plot(x, found.estimate, color=colour, linewidth=1.6, zorder=3)
    else:
        errors = np.abs(np.stack([found.estimate - low, high - found.estimate]))
        axis.errorbar(
            x,
            found.estimate,
            errors,
            color=colour,
            linestyle="",
            linewidth=1.1,
            capsize=2,
            zorder=3,
        )
    difference = curve(table, value, at, seed, paired=True)
    differs = (difference.low > 0) | (
        difference.high < 0
    )  # the band over all windows at once leaves out zero
    for chosen, face in ((differs, colour), (~differs, "white")):
        axis.plot(
            x[chosen],
            found.estimate[chosen],
            marker,
            color=colour,
            markerfacecolor=face,
            markersize=5,
            zorder=4,
        )
    axis.plot(
        [],
        [],
        color=colour,
        marker=marker,
        markersize=5,
        linestyle="-" if shaded else "",
        label=label,
    )


def dress(axis: Axes, table: xr.Dataset, windows: Windows, value: str, above: str) -> None:
    """Title, ticks at the middle of each window, scale."""
    title(axis, f"{above}\n{table.attrs.get('model', '')}")
    middles = [float(np.mean(layers)) + 1 for layers in windows.values()]
    axis.set_xticks(middles, list(windows), rotation=45 if len(windows) > 10 else 0)
    axis.set_xlim(0.5, table.sizes["layer"] + 0.5)
    axis.set_xlabel(f"{stack_of(table)} layers without vision tokens")
    scale(axis, table, value)


def scale(axis: Axes, table: xr.Dataset, value: str) -> None:
    """The vertical axis: its label, and all of it where it has an end."""
    axis.set_ylabel(label_of(table, value))
    axis.spines[["top", "right"]].set_visible(False)
    if (top := top_of(table, value)) is not None:
        axis.set_ylim(-0.02 * top, 1.02 * top)


def stack_of(table: xr.Dataset) -> str:
    """Whose layers they are."""
    return {"prefusion": "pre-fusion"}.get(table.attrs.get("stack", ""), "LLM")


def note(table: xr.Dataset, seed: int, over: str = "all windows") -> str:
    """How questions became points, for a caption."""
    images = len(np.unique(table["image"].values.astype(str)))
    headline = Headline(table)
    what = "mean" if headline.is_mean else headline.name
    return (
        f"{what} of {table.sizes['sample']} questions on {images} images; 95 % bands over {over} at once, "
        f"images redrawn (seed {seed})"
    )
