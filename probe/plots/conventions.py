"""Does "vision fades with depth" depend on the definition? One record under all conventions that
papers use.

    rows       attention as mass, as share, against an even spread (lift), or as what arrives
               (contribution)
    columns    all text queries that see the image, or only those that predict the answer; with the
               first token, or without it
    in a cell  every head (thin) and their mean (thick)

"Fades" means: the rank correlation of layer and value is -0.5 or less.
"""

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.errors import ProbeError
from probe.plots.arguments import one_record
from probe.plots.sample_mean import sampling
from probe.plots.style import (
    BLUE,
    LIGHT_GREY,
    VERMILION,
    caption,
    figure_of,
    finish,
    heading,
    layer_label,
    panels,
    styled,
)
from probe.records import node
from probe.records.rank_agreement import spearman

FADES = -0.5
VALUES = {
    "mass": "attention on vision",
    "share": "share of attention",
    "lift": "attention ÷ even spread",
    "contribution": "share of what arrives",
}
PREDICTING = ("last", "response")
_BOS = ("first token in", "first token out")
_CALLED = "plots.conventions"


class Convention(NamedTuple):
    value: str
    rows: str  # "all text rows" or "rows that say the answer"
    bos: str  # "first token in" or "first token out"


def survey(
    record: xr.DataTree, stack: str = "llm"
) -> dict[Convention, Float[np.ndarray, "layer head"]]:
    """The part of vision under every convention that a record has numbers for, mean over samples.

    Without the first token means: of the attention that the first token does not get. That needs a
    record with `types="fine"`; contribution needs one measured with it. Raises ProbeError for a
    record without attention to vision.
    """
    measured = node(record, stack)
    if "vision" not in measured["key_type"].values:
        raise ProbeError(
            _CALLED,
            expected="a record with vision keys",
            got=stack,
            fix="measure a sample with an image",
        )
    values = [value for value in VALUES if value in measured]
    without_bos = _BOS if "bos" in measured["key_type"].values else _BOS[:1]
    curves = {}
    for value, (rows, types), bos in product(values, _queries(measured).items(), without_bos):
        curve = _vision_part(measured, value, types, without_bos=bos == _BOS[1])
        if not np.isnan(curve).all():
            curves[Convention(value, rows, bos)] = curve
    return curves


def _queries(measured: xr.Dataset) -> dict[str, list[str]]:
    """The query types that see the image, and those of them that predict the answer."""
    counts = measured["query_count"].sel(key_type="vision")
    counts = counts.max([dim for dim in counts.dims if dim != "query_type"])
    seeing = counts["query_type"].values[counts.values > 0].tolist()
    text = [name for name in seeing if name not in ("vision", "cls", "other")]
    return {
        "all text rows": text,
        "rows that say the answer": [name for name in PREDICTING if name in text],
    }


def _vision_part(
    measured: xr.Dataset, value: str, types: list[str], without_bos: bool
) -> Float[np.ndarray, "layer head"]:
    """Queries of several types together, weighted by their number; then the mean over samples."""
    array = measured[value].sel(query_type=types)
    vision = array.sel(key_type="vision")
    if value == "contribution":
        keys = array["key_type"].values
        kept = [name for name in keys if name != "bos" or not without_bos]
        vision = vision / array.sel(key_type=kept).sum("key_type")
    elif without_bos:
        attention = measured["share" if value == "share" else "mass"]
        on_bos = attention.sel(query_type=types, key_type="bos")
        vision = vision / (1 - on_bos).clip(1e-6)
    count = measured["query_count"].sel(query_type=types, key_type="vision")
    pooled = vision.weighted(count.fillna(0)).mean("query_type")
    return pooled.mean("sample").transpose("layer", "head").values


def trend(curve: Float[np.ndarray, "layer *head"]) -> Float[np.ndarray, "*head"]:
    """Rank correlation of layer and value: -1 always falls, 1 always rises; NaN for a constant."""
    return spearman(np.moveaxis(curve, 0, -1), np.arange(len(curve), dtype=float))


@styled()
def conventions(record: Any, stack: str = "llm") -> Figure:
    """A panel a convention; the title counts those under which vision fades.

    How to read it: a thick line is the mean over heads, orange where it fades and blue where it
    does not. If the colours differ from panel to panel, "vision fades" is a statement about the
    definition and not about the model. With `types="fine"` and `contribution=True` a record has all
    sixteen panels.

    record: a single one. Source: the claim is that of arXiv 2501.03895 (Fig. 2) and others; the
    conventions are those of the papers that make it. Raises ProbeError for several records, and for
    one without attention to vision.
    """
    name, one = one_record(record, _CALLED)
    curves = survey(one, stack)
    columns = list(dict.fromkeys((convention.rows, convention.bos) for convention in curves))
    values = list(dict.fromkeys(convention.value for convention in curves))
    axes = panels(None, len(values), len(columns), (3.2, 2.4), _CALLED)
    fading = 0
    for row, value in zip(axes, values, strict=True):
        for axis, column in zip(row, columns, strict=True):
            curve = curves.get(Convention(value, *column))
            if curve is None:
                axis.set_axis_off()
            else:
                fading += _draw(axis, curve, "\n".join(column) if axis in axes[0] else "")
        _same_scale(row)
        row[0].set_ylabel(VALUES[value])
    for axis in axes[-1]:
        axis.set_xlabel(layer_label(stack))
    figure = figure_of(axes)
    count = f"{fading} of {len(curves)} conventions, heads averaged"
    heading(figure, f"Does vision fade with depth? Under {count} · {name}")
    notes = [
        "thin: heads; thick: their mean, orange where it fades (rank correlation with depth ≤ "
        "-0.5), else blue",
        *sampling({name: one}, stack, "sample"),
    ]
    if "bos" not in node(one, stack)["key_type"].values:
        notes.append("measure with types='fine' to leave the first token out")
    caption(axes, notes, {name: one}, own=True)
    return figure


def _draw(axis: Axes, curve: Float[np.ndarray, "layer head"], text: str) -> bool:
    """One convention. Returns whether its mean fades."""
    layers = np.arange(1, len(curve) + 1)
    mean = curve.mean(1)
    slope = float(trend(mean))
    fades = slope <= FADES
    axis.plot(layers, curve, color=LIGHT_GREY, linewidth=0.6)
    axis.plot(layers, mean, color=VERMILION if fades else BLUE, linewidth=2.2)
    fading_heads = int((trend(curve) <= FADES).sum())
    verdict = f"{'fades' if fades else 'does not fade'} ({slope:+.2f})"
    note = f"{verdict}\n{fading_heads} of {curve.shape[1]} heads fade"
    axis.text(0.98, 0.98, note, fontsize=7.5, ha="right", va="top", transform=axis.transAxes)
    top = 1.35 * float(np.nanmax(curve)) or 1  # room for the note
    finish(axis, text, layers=len(curve), ylim=(0, top))
    return fades


def _same_scale(row: np.ndarray) -> None:
    top = max(axis.get_ylim()[1] for axis in row)
    for axis in row:
        axis.set_ylim(0, top)
