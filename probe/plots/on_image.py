"""Where in the image attention falls: each patch drawn where it lies in the original image.

The record has the edges of every patch as fractions of the image, so it does not matter how the
image was fitted to the encoder: after a crop only the middle is covered, after padding the patches
on the bars lie outside and are cut off, and NeXT's tiles get a row of their own below the whole
image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patheffects import withStroke

from probe.errors import ProbeError
from probe.plots.style import Records, caption, chosen, default_query, labelled, layer_label, panels
from probe.plots.views import View, attention_on, index_of, layers_of, sinks_of, views
from probe.records import node

_FITTED = {
    "crop": "preprocessing: crop (the model sees the square in the middle only)",
    "pad": "preprocessing: pad (to a square; patches on the bars lie outside the image)",
    "anyres": "preprocessing: any-resolution (the whole image, and tiles at a higher resolution)",
}
_COLUMNS = 5  # panels in a row of the figure
_WIDTH = 1.9  # of a panel, in inches
_DECADES = 3  # of the colour scale at most, unless its floor is told


def heatmaps(
    record: Records,
    sample: int | str = 0,
    query_type: str | None = None,
    layers: int | Sequence[int] | None = None,
    stack: str = "llm",
    *,
    image: int | None = None,
    tile: int | None = None,
    token: int | None = None,
    floor: float | None = None,
    sinks: str = "keep",
    ax: Any = None,
) -> np.ndarray:
    """The attention that each patch gets from the queries of a type, over the image, a panel a
    layer.

    sample: index or id. layers: an index from 0 or several (nine evenly spread in each record by
    default; a record with fewer than another leaves the last panels of its rows out). image, tile:
    only that one (tile 0 is the whole image). token: the map of that one token instead (its index
    on the axis `token` of a record measured with `maps`). Colours are logarithmic from `floor`, by
    default what 99 % of the patches reach, at most three decades below the top: it is written
    beside the scale, what is below looks like it. All panels share the scale. sinks: attention
    sinks (`probe/measures/attention/sinks.py`) have a cross in any case, where the record knows
    them; with "drop" they have no colour, so that they do not set the scale, and with "split" their
    value is written instead. Returns Axes of shape (views, layers): a view is a record's image,
    whole or in tiles.

    Source: arXiv 2501.03895, Fig. 4. Raises ProbeError for a sample, query type, layer, image,
    tile, token or stack that a record does not have, for a record without numbers of patches, and
    for a floor above the top.
    """
    if sinks not in ("keep", "drop", "split"):
        raise ProbeError("plots.heatmaps", expected="sinks of keep, drop, split", got=repr(sinks))
    named = labelled(record, "plots.heatmaps")
    found: list[View] = []
    shown: list[list[int]] = []  # the layers of each view
    for name, one in named.items():
        measured = node(one, stack)
        query_type = query_type or default_query(measured)
        chosen(query_type, measured["query_type"].values.tolist(), "plots.heatmaps")
        drawn = layers_of(measured, layers)
        index = index_of(measured, sample)
        values = attention_on(measured, index, query_type, token)[drawn]
        marked = sinks_of(measured, index)
        marked = marked if marked is None else marked[drawn]
        for view in views(one, measured, index, values, image, tile, marked):
            title = ", ".join(text for text in (name if len(named) > 1 else "", view.title) if text)
            found.append(replace(view, title=title))
            shown.append(drawn)
    norm = log_scale([_without_sinks(view) for view in found] if sinks != "keep" else found, floor)
    columns = max(map(len, shown))
    axes = (
        _grid(found, columns)
        if ax is None
        else panels(ax, len(found), columns, (0, 0), "plots.heatmaps")
    )
    used: list[Axes] = []
    for row, view, drawn in zip(axes, found, shown, strict=True):
        coloured = view if sinks == "keep" else _without_sinks(view)
        for place, (axis, layer) in enumerate(zip(row, drawn, strict=False)):
            patches = draw_patches(axis, view, coloured.values[place], norm)
            _mark_sinks(axis, view, place, with_value=sinks == "split")
            axis.set_title(f"{layer_label(stack)} {layer + 1}", fontsize=9)
            used.append(axis)
        for axis in row[len(drawn) :]:
            axis.remove()
    what = "attention received" if token is None else "attention of the token"
    floor_text = f"{what}, head mean\n(fraction; log, floor {norm.vmin:.2g})"
    figure = axes.flat[0].figure
    figure.colorbar(patches, ax=used, label=floor_text, extend="min", shrink=0.9, pad=0.02)
    if ax is None:
        what = f"{query_type} tokens look"
        if token is not None:
            what = f"token {token} ({str(measured['map_token'].values[index, token])!r}) looks"
        name = str(measured["sample"].values[index])
        figure.suptitle(
            f"What {what} at · {name}", x=0.01, ha="left", fontsize=11, parse_math=False
        )
    notes = fitted(named)
    if any(view.sinks is not None and view.sinks.any() for view in found):
        notes.append("× attention sink: outlying norm and attention, whatever the patch shows")
    caption(axes, notes, named, own=ax is None)
    return axes


def _without_sinks(view: View) -> View:
    """Sinks as NaN."""
    return (
        view
        if view.sinks is None
        else replace(view, values=np.where(view.sinks, np.nan, view.values))
    )


def _mark_sinks(axis: Axes, view: View, layer: int, with_value: bool) -> None:
    """A cross on each sink of the layer, or its value."""
    if view.sinks is None or not view.sinks[layer].any():
        return
    height, width = view.pixels.shape[:2] if view.pixels.size else (1, 1)
    left, top, right, bottom = view.boxes[view.sinks[layer]].T
    x, y = (left + right) / 2 * width, (top + bottom) / 2 * height
    outline = [withStroke(linewidth=2, foreground="black")]
    if not with_value:
        axis.plot(
            x, y, "x", color="#56B4E9", markersize=5, markeredgewidth=1.5, path_effects=outline
        )
        return
    for across, down, value in zip(x, y, view.values[layer][view.sinks[layer]], strict=True):
        axis.text(
            across,
            down,
            f"×\n{value:.2g}",
            color="#56B4E9",
            fontsize=6,
            ha="center",
            va="center",
            path_effects=outline,
        )


def log_scale(found: list[View], floor: float | None) -> LogNorm:
    """One scale for all views: from `floor`, by default as `heatmaps` says, to the highest
    value.
    """
    values = np.concatenate([view.values.ravel() for view in found])
    top = float(np.nanmax(values)) or 1.0
    low = _floor(values, top) if floor is None else floor
    if not 0 < low < top:
        expected = f"a floor between 0 and the highest value ({top:.2g})"
        raise ProbeError("plots.heatmaps", expected=expected, got=f"{low:g}")
    return LogNorm(low, top, clip=True)


def _floor(values: Float[np.ndarray, " value"], top: float) -> float:
    """What 99 % of the values reach, with one digit; between a half and a thousandth of the top."""
    positive = values[values > 0]
    reached = float(np.quantile(positive, 0.01)) if positive.size else top
    reached = min(max(reached, top * 10.0**-_DECADES), top / 2)
    digit = 10.0 ** np.floor(np.log10(reached))
    return float(np.floor(reached / digit) * digit)


def _grid(found: list[View], layers: int) -> np.ndarray:
    """(view, layer) Axes of a new figure, wrapped to rows; before each view's first one is the
    image itself.
    """
    columns = min(_COLUMNS, layers + 1)
    rows = -(-(layers + 1) // columns)
    shapes = [view.pixels.shape if view.pixels.size else (1, 1) for view in found]
    tall = [min(height / width, 2) for height, width, *_ in shapes]
    size = (columns * _WIDTH + 1.1, sum(rows * (_WIDTH * each + 0.3) for each in tall) + 0.8)
    ratios = np.repeat(tall, rows).tolist()
    _, axes = plt.subplots(
        len(ratios),
        columns,
        figsize=size,
        layout="constrained",
        squeeze=False,
        height_ratios=ratios,
    )
    blocks = axes.reshape(len(found), rows * columns)
    for axis in blocks[:, layers + 1 :].flat:
        axis.remove()
    for axis, view in zip(blocks[:, 0], found, strict=True):
        show_image(axis, view.pixels)
        axis.set_title(view.title or "image", fontsize=9, parse_math=False)
    return blocks[:, 1 : layers + 1]


def show_image(
    axis: Axes, pixels: UInt8[np.ndarray, "height width channel"], grey: bool = False
) -> tuple[int, int]:
    """Draw the image (nothing, if it was not kept) and return the width and height of the panel's
    coordinates.
    """
    height, width = pixels.shape[:2] if pixels.size else (1, 1)
    if pixels.size:
        shown = (
            1 - (1 - pixels.mean(-1) / 255) * 0.85 if grey else pixels
        )  # light, so that colours stand out
        axis.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
    return width, height


def draw_patches(
    axis: Axes,
    view: View,
    values: Float[np.ndarray, " key"],
    norm: Normalize,
    colours: str = "inferno",
) -> PolyCollection:
    """The patches of a view in the colours of their values, over the image in grey."""
    width, height = show_image(axis, view.pixels, grey=True)
    left, top, right, bottom = np.clip(view.boxes, 0, 1).T
    seen = (right > left) & (bottom > top) & ~np.isnan(values)
    corners = np.stack([left, top, right, top, right, bottom, left, bottom], -1).reshape(-1, 4, 2)[
        seen
    ]
    patches = PolyCollection(
        [*(corners * (width, height))], cmap=colours, norm=norm, alpha=0.7, linewidths=0
    )
    patches.set_array(values[seen])
    axis.add_collection(patches, autolim=False)
    return patches


def fitted(named: Mapping[str, xr.DataTree]) -> list[str]:
    """How images were fitted to the encoder, and whether they were kept, for a caption."""
    aspects = [str(each.attrs.get("aspect", "unknown")) for each in named.values()]
    notes = [_FITTED.get(aspect, f"preprocessing: {aspect}") for aspect in aspects]
    if not all("images" in each.data_vars for each in named.values()):
        notes.append("a record holds no pixels: its patches are drawn on a blank square")
    return notes
