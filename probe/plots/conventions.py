"""Does "vision fades with depth" survive the definition? The same record under every convention
that papers use.

    rows        attention as mass, as share, against an even spread (lift), or as what arrives (contribution)
    columns     all text rows that see the image, or only those that say the answer; the first token in or out
    in a cell   every head (thin) and their mean (thick)

"Fades" means: the rank correlation of layer and value is -0.5 or less.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes

from probe.errors import ProbeError
from probe.plots.sample_mean import sampling
from probe.plots.style import caption, count_from_one, labelled, layer_label, title
from probe.records import node
from probe.records.rank_agreement import spearman

FADES = -0.5
VALUES = ("mass", "share", "lift", "contribution")
PREDICTING = ("last", "response")
_LOOKS = {"fades": "#D55E00", "does not": "#0072B2"}
_NAMES = {
    "mass": "attention on vision",
    "share": "share of attention",
    "lift": "attention ÷ even spread",
    "contribution": "share of what arrives",
}


class Convention(NamedTuple):
    value: str
    rows: str  # "all text rows" or "rows that say the answer"
    bos: str  # "first token in" or "first token out"


def survey(
    record: xr.DataTree, stack: str = "llm"
) -> dict[Convention, Float[np.ndarray, "layer head"]]:
    """Vision's part under every convention that a record has numbers for, mean over samples.

    The first token can be left out of a record with `types="fine"`; contribution has to be
    measured. Left out means: of what is not given to the first token. Raises ProbeError for a
    record without attention to vision.
    """
    measured = node(record, stack)
    if "vision" not in measured["key_type"].values:
        raise ProbeError(
            "plots.conventions",
            expected="a record with vision keys",
            got=stack,
            fix="measure a sample with an image",
        )
    found = {}
    for value in (value for value in VALUES if value in measured):
        for rows, types in _queries(measured).items():
            for bos in ("first token in", "first token out")[
                : 1 + ("bos" in measured["key_type"].values)
            ]:
                curve = _part(measured, value, types, bos == "first token out")
                if not np.isnan(curve).all():
                    found[Convention(value, rows, bos)] = curve
    return found


def _queries(measured: xr.Dataset) -> dict[str, list[str]]:
    there = [str(name) for name in measured["query_type"].values if name not in ("vision", "cls")]
    seeing = measured["query_count"].sel(key_type="vision")
    seeing = seeing.max([dim for dim in seeing.dims if dim != "query_type"])
    every = [name for name in there if seeing.sel(query_type=name) > 0]
    return {
        "all text rows": every,
        "rows that say the answer": [name for name in PREDICTING if name in every],
    }


def _part(
    measured: xr.Dataset, value: str, types: list[str], without_bos: bool
) -> Float[np.ndarray, "layer head"]:
    """Queries of several types together, weighted by their number; then the mean over samples."""
    array = measured[value].sel(query_type=types)
    vision, count = (
        array.sel(key_type="vision"),
        measured["query_count"].sel(query_type=types, key_type="vision"),
    )
    if value == "contribution":
        others = [name for name in array["key_type"].values if name != "bos" or not without_bos]
        vision = vision / array.sel(key_type=others).sum("key_type")
    elif without_bos:
        given = measured["share" if value == "share" else "mass"].sel(
            query_type=types, key_type="bos"
        )
        vision = vision / (1 - given).clip(1e-6)
    pooled = vision.weighted(count.fillna(0)).mean("query_type")
    return pooled.mean("sample").transpose("layer", "head").values


def trend(curve: Float[np.ndarray, "layer *head"]) -> Float[np.ndarray, "*head"]:
    """Rank correlation of layer and value: -1 falls all the way, 1 rises; NaN for what does not
    change.
    """
    return spearman(np.moveaxis(curve, 0, -1), np.arange(len(curve), dtype=float))


def conventions(record: Any, stack: str = "llm", *, seed: int = 0) -> np.ndarray:
    """A panel a convention, and above them how many say that vision fades. Returns Axes (value,
    column).

    record: one record; with `types="fine"` and `contribution=True` it has all sixteen. Source: the
    claim is that of arXiv 2501.03895 (Fig. 2) and others; the conventions are those of the papers
    that make it.
    """
    (name, one), *more = labelled(record, "plots.conventions").items()
    if more:
        raise ProbeError("plots.conventions", expected="one record", got=str(1 + len(more)))
    found = survey(one, stack)
    columns = list(dict.fromkeys((each.rows, each.bos) for each in found))
    rows = list(dict.fromkeys(each.value for each in found))
    axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(3.1 * len(columns) + 0.6, 2.1 * len(rows) + 1.1),
        sharex=True,
        layout="constrained",
        squeeze=False,
    )[1]
    fading = 0
    for (value, column), axis in _cells(rows, columns, axes):
        curve = found.get(Convention(value, *column))
        if curve is None:
            axis.set_axis_off()
            continue
        fading += _draw(axis, curve)
        if axis in axes[:, 0]:
            axis.set_ylabel(_NAMES[value], fontsize=9)
        if axis in axes[0]:
            title(axis, "\n".join(column))
        if axis in axes[-1]:
            axis.set_xlabel(layer_label(stack))
    figure = axes[0, 0].figure
    figure.suptitle(
        f"Does vision fade with depth? Under {fading} of {len(found)} conventions, heads averaged · {name}",
        x=0.01,
        ha="left",
        fontsize=11,
        parse_math=False,
    )
    notes = [
        "thin: heads; thick: their mean, orange where it fades (rank correlation with depth ≤ -0.5), else blue",
        *sampling({name: one}, stack, "sample"),
    ]
    if "bos" not in node(one, stack)["key_type"].values:
        notes.append("measure with types='fine' to leave the first token out")
    caption(axes, notes, {name: one}, own=True)
    return axes


def _cells(
    rows: list[str], columns: list[tuple[str, str]], axes: np.ndarray
) -> Iterator[tuple[Any, Axes]]:
    for value, line in zip(rows, axes, strict=True):
        for column, axis in zip(columns, line, strict=True):
            yield (value, column), axis


def _draw(axis: Axes, curve: Float[np.ndarray, "layer head"]) -> bool:
    """One convention; whether its mean fades."""
    layers, mean = np.arange(1, len(curve) + 1), curve.mean(1)
    slope, slopes = float(trend(mean)), trend(curve)
    fades = bool(slope <= FADES)
    axis.plot(layers, curve, color="0.75", linewidth=0.6)
    axis.plot(layers, mean, color=_LOOKS["fades" if fades else "does not"], linewidth=2.2)
    heads = f"{int((slopes <= FADES).sum())} of {curve.shape[1]} heads fade"
    text = f"{'fades' if fades else 'does not fade'} ({slope:+.2f})\n{heads}"
    axis.text(0.98, 0.98, text, fontsize=7.5, ha="right", va="top", transform=axis.transAxes)
    axis.set_ylim(0, 1.35 * float(np.nanmax(curve)) or 1)  # room for the words
    count_from_one(axis.xaxis, len(curve))
    axis.spines[["top", "right"]].set_visible(False)
    return fades
