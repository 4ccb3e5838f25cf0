"""Where in the picture attention falls: each patch drawn where it lies in the original picture.

The record has the edges of every patch as fractions of the picture, so it does not matter how the picture was
fitted to the encoder: after a crop only the middle is covered, after padding the patches on the bars lie
outside and are cut off, and NeXT's tiles get a row of their own below the whole picture. Newline tokens have
no place and are not drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm

from probe.errors import ProbeError
from probe.plots.look import Records, caption, chosen, default_query, labelled, layer_label, panels
from probe.record import node

_FITTED = {
    "crop": "preprocessing: crop (the model sees the square in the middle only)",
    "pad": "preprocessing: pad (to a square; patches on the bars lie outside the picture)",
    "anyres": "preprocessing: any-resolution (the whole picture, and tiles at a higher resolution)",
}
_COLUMNS = 5  # panels in a row of the figure
_RANGE = 1000  # the floor of the colour scale unless told: this part of the highest value


@dataclass(frozen=True)
class _View:
    """One picture of one record, seen whole or in tiles: a row of panels."""

    title: str
    pixels: np.ndarray  # (height, width, 3) or empty
    boxes: Float[np.ndarray, "key 4"]
    values: Float[np.ndarray, "layer key"]


def heatmaps(
    record: Records,
    sample: int | str = 0,
    query_type: str | None = None,
    layers: Sequence[int] | None = None,
    stack: str = "llm",
    *,
    picture: int | None = None,
    tile: int | None = None,
    token: int | None = None,
    floor: float | None = None,
    ax: Any = None,
) -> np.ndarray:
    """The attention that each patch gets from the queries of a type, over the picture, a panel a layer.

    sample: index or id. layers: indices from 0 (nine evenly spread by default). picture, tile: only that one
    (tile 0 is the whole picture). token: draw the map of that one token (its index on the axis `token` of a
    record measured with `maps`) instead. Colours are logarithmic from `floor` (by default a thousandth of the
    highest value, written beside the scale; what is below it looks like it) and the same in all panels.
    Returns Axes of shape (views, layers): a view is a record's picture, whole or tiles.

    Source: arXiv 2501.03895, Fig. 4.
    """
    named = labelled(record, "plots.heatmaps")
    views = []
    for name, one in named.items():
        measured = node(one, stack)
        query_type = query_type or default_query(measured)
        chosen(query_type, measured["query_type"].values.tolist(), "plots.heatmaps")
        layers = _layers(layers, measured.sizes["layer"])
        index = _index(one, sample)
        values = _values(measured.isel(sample=index), query_type, token)[list(layers)]
        views += _views(one, measured, index, values, picture, tile, name if len(named) > 1 else "")
    norm = _norm(views, floor)
    axes = (
        panels(ax, len(views), len(layers), (0, 0), "plots.heatmaps")
        if ax is not None
        else _grid(views, len(layers))
    )
    for row, view in zip(axes, views, strict=True):
        for axis, values, layer in zip(row, view.values, layers, strict=True):
            drawn = _draw(axis, view, values, norm)
            axis.set_title(f"{layer_label(stack)} {layer + 1}", fontsize=9)
    _finish(axes, drawn, named, sample, query_type, token, own=ax is None)
    return axes


def can_draw(measured: xr.DataTree, sample: int | str, query_type: str) -> bool:
    """Whether `heatmaps` has something to draw for this sample."""
    if "received" not in measured or "key_box" not in measured:
        return False
    index = _index(measured, sample)
    placed = measured["key_box"].isel(sample=index).notnull().any("edge")
    return bool((measured["received"].isel(sample=index).sel(query_type=query_type).notnull() & placed).any())


def _index(record: xr.DataTree, sample: int | str) -> int:
    ids = record["sample"].values.tolist()
    if isinstance(sample, str) and sample in ids:
        return ids.index(sample)
    if isinstance(sample, str) or not -len(ids) <= sample < len(ids):
        some = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise ProbeError("plots.heatmaps", expected=f"one of {len(ids)} samples ({some})", got=repr(sample))
    return int(sample)


def _layers(layers: Sequence[int] | None, count: int) -> Sequence[int]:
    if layers is None:
        return np.unique(np.linspace(0, count - 1, min(count, 9)).round().astype(int)).tolist()
    if not layers or not all(0 <= layer < count for layer in layers):
        raise ProbeError("plots.heatmaps", expected=f"layers from 0 to {count - 1}", got=str(list(layers)))
    return layers


def _values(measured: xr.Dataset, query_type: str, token: int | None) -> Float[np.ndarray, "layer key"]:
    name = "received" if token is None else "maps"
    if name not in measured:
        fix = "measure with pictures" if token is None else "measure with maps"
        raise ProbeError("plots.heatmaps", expected=f"a record with {name!r}", got="one without", fix=fix)
    values = measured[name]
    if token is None:
        return values.sel(query_type=query_type).values
    if not 0 <= token < values.sizes["token"]:
        raise ProbeError("plots.heatmaps", expected=f"token below {values.sizes['token']}", got=str(token))
    values = values.isel(token=token)
    return (values.mean("head") if "head" in values.dims else values).values


def _views(
    record: xr.DataTree,
    measured: xr.DataTree,
    index: int,
    values: Float[np.ndarray, "layer key"],
    picture: int | None,
    tile: int | None,
    name: str,
) -> list[_View]:
    keys = measured.isel(sample=index)
    boxes, owner, tiles = (keys[part].values for part in ("key_box", "key_picture", "key_tile"))
    placed = ~np.isnan(boxes).any(-1) & ~np.isnan(values).all(0)
    found = []
    for number in np.unique(owner[placed]):
        parts = {"": tiles == 0, "tiles": tiles > 0} if tile is None else {f"tile {tile}": tiles == tile}
        for part, inside in parts.items():
            mask = placed & (owner == number) & inside
            several = len(np.unique(owner[placed])) > 1
            title = ", ".join(
                text for text in (name, f"picture {number + 1}" if several else "", part) if text
            )
            if mask.any() and picture in (None, number):
                found.append(_View(title, _pixels(record, index, int(number)), boxes[mask], values[:, mask]))
    if not found:
        got = f"none in sample {record['sample'].values[index]!r}, picture {picture}, tile {tile}"
        raise ProbeError("plots.heatmaps", expected="vision tokens that were attended to", got=got)
    return found


def _pixels(record: xr.DataTree, sample: int, picture: int) -> np.ndarray:
    if "picture" not in record or picture >= record.sizes["image"]:
        return np.empty((0, 0, 3), np.uint8)
    height, width = record["picture_size"].values[sample, picture]
    return record["picture"].values[sample, picture, :height, :width]


def _norm(views: list[_View], floor: float | None) -> LogNorm:
    top = max(np.nanmax(view.values) for view in views)
    top = top if top > 0 else 1.0
    floor = floor if floor is not None else top / _RANGE
    if not 0 < floor < top:
        raise ProbeError(
            "plots.heatmaps", expected=f"a floor between 0 and the highest value {top:.2g}", got=str(floor)
        )
    return LogNorm(floor, top, clip=True)


def _grid(views: list[_View], layers: int) -> np.ndarray:
    """(view, layer) Axes of a new figure, wrapped to rows; the first of each view is the picture itself."""
    columns = min(_COLUMNS, layers + 1)
    rows = -(-(layers + 1) // columns)
    tall = [min(view.pixels.shape[0] / max(view.pixels.shape[1], 1) or 1, 2) for view in views]
    width = 9.6 / _COLUMNS
    size = (columns * width + 1.1, sum(rows * (width * each + 0.3) for each in tall) + 0.8)
    _, axes = plt.subplots(
        rows * len(views),
        columns,
        figsize=size,
        layout="constrained",
        squeeze=False,
        height_ratios=np.repeat(tall, rows),
    )
    blocks = axes.reshape(len(views), rows * columns)
    for axis in blocks[:, layers + 1 :].flat:
        axis.remove()
    for axis, view in zip(blocks[:, 0], views, strict=True):
        _show(axis, view.pixels, grey=False)
        axis.set_title(view.title or "picture", fontsize=9, parse_math=False)
    return blocks[:, 1 : layers + 1]


def _show(axis: Axes, pixels: np.ndarray, grey: bool) -> tuple[int, int]:
    """Draw the picture (or nothing, if it was not kept) and return width and height of what lies below."""
    height, width = pixels.shape[:2] if pixels.size else (1, 1)
    if pixels.size:
        shown = 1 - (1 - pixels.mean(-1) / 255) * 0.85 if grey else pixels  # light, so that colours stand out
        axis.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
    return width, height


def _draw(axis: Axes, view: _View, values: Float[np.ndarray, " key"], norm: LogNorm) -> PolyCollection:
    width, height = _show(axis, view.pixels, grey=True)
    boxes = np.clip(view.boxes, 0, 1)
    left, top, right, bottom = boxes.T
    seen: Bool[np.ndarray, " key"] = (right > left) & (bottom > top) & ~np.isnan(values)
    corners = np.stack([left, top, right, top, right, bottom, left, bottom], -1).reshape(-1, 4, 2)[seen]
    patches = PolyCollection(corners * (width, height), cmap="inferno", norm=norm, alpha=0.7, linewidths=0)
    patches.set_array(values[seen])
    axis.add_collection(patches, autolim=False)
    return patches


def _finish(
    axes: np.ndarray,
    drawn: PolyCollection,
    named: dict,
    sample: int | str,
    query_type: str,
    token: int | None,
    own: bool,
) -> None:
    figure, norm = axes.flat[0].figure, drawn.norm
    one = next(iter(named.values()))
    name = sample if isinstance(sample, str) else one["sample"].values[sample]
    what = f"{query_type} tokens" if token is None else f"token {token}"
    text = f"attention received, head mean\n(fraction; log, floor {norm.vmin:.1g})"
    figure.colorbar(drawn, ax=axes.ravel().tolist(), label=text, extend="min", shrink=0.9, pad=0.02)
    if own:
        figure.suptitle(f"What {what} look at · {name}", x=0.01, ha="left", fontsize=11, parse_math=False)
    fitted = [
        _FITTED.get(str(each.attrs.get("aspect")), f"preprocessing: {each.attrs.get('aspect', 'unknown')}")
        for each in named.values()
    ]
    kept = [] if "picture" in one else ["the record holds no pixels: patches are drawn on a blank square"]
    caption(axes, fitted + kept, named, own)
