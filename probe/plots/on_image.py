"""Where in the image attention falls: each patch drawn where it lies in the original image.

After a crop only the middle of the image is covered, after padding the patches on the bars are cut
off, and the tiles of LLaVA-NeXT get a row of their own below the whole image. Newline tokens have
no place in the image, so they are not drawn.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.errors import ProbeError, one_of
from probe.plots.arguments import (
    Records,
    chosen,
    default_query,
    labelled,
    layer_indices,
    sample_index,
)
from probe.plots.patches import (
    LOG_BAR,
    View,
    draw_patches,
    kept_images,
    log_scale,
    middles,
    outlined,
    preprocessing,
    show_image,
    small_image,
)
from probe.plots.style import (
    SKY,
    SMALL_TITLE,
    caption,
    figure_of,
    heading,
    layer_label,
    panels,
    styled,
)
from probe.records import node

_CALLED = "plots.heatmaps"
_COLUMNS = 5  # panels in a row of the figure
_FRAMES = 6  # of a longer video that are drawn, unless one is chosen
_WIDTH = 1.9  # of a panel, in inches


@styled()
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
) -> Figure:
    """The attention that each patch receives from the queries of a type, a panel a layer.

    How to read it: bright patches receive most. Colours are logarithmic and shared by all panels;
    whatever is below the floor, which is written below the scale, has the darkest colour. A row is
    a view of a record: an image as a whole, or all of its tiles. Thin lines are outlines of the
    image. The caption says how much attention lies on the bars of a padded image.

    Args:
        sample: index or id.
        query_type: by default the response, or what comes nearest to it and was measured.
        layers: an index from 0 or several; by default nine evenly spread in each record.
        image, tile: only that one (from 0; tile 0 is the whole image). Frames of a video count as
            images; by default six of a longer one.
        token: the map of that one token instead (its index on the axis `token` of a record that
            was measured with `maps`).
        floor: of the colours; by default what 99 % of the patches reach, at most three decades
            below the highest value.
        sinks: attention sinks (`probe.find_sinks`) always have a cross where the record knows
            them. With "drop" they have no colour and do not set the scale; with "split" their
            value is written on them as well.
        ax: the Axes to draw on, (views x layers) of them.

    Source: arXiv 2501.03895, Fig. 4. Raises ProbeError for a sample, query type, layer, image,
    tile, token or stack that a record does not have, for a record without numbers of patches, and
    for a floor above the highest value.
    """
    one_of(_CALLED, "sinks of", sinks, ("keep", "drop", "split"))
    named = labelled(record, _CALLED)
    first = node(next(iter(named.values())), stack)
    query_type = query_type or default_query(first)
    found: list[View] = []
    numbers: list[np.ndarray] = []  # of each view's layers
    for name, one in named.items():
        measured = node(one, stack)
        chosen(query_type, measured["query_type"].values.tolist(), _CALLED)
        index = sample_index(measured, sample, _CALLED)
        values = _attention_on(measured, index, query_type, token)
        drawn = layer_indices(measured, layers, _CALLED)
        label = name if len(named) > 1 else ""
        found += views(one, measured, index, values, image, tile, drawn, label)
        numbers += [measured["layer"].values] * (len(found) - len(numbers))
    coloured = found if sinks == "keep" else [view.without_sinks() for view in found]
    norm = log_scale(coloured, floor, _CALLED)
    columns = max(len(view.maps) for view in found)
    axes = _grid(found, columns) if ax is None else panels(ax, len(found), columns, (0, 0), _CALLED)
    used: list[Axes] = []
    for row, view, colours, layers_of in zip(axes, found, coloured, numbers, strict=True):
        for number, layer in enumerate(view.maps):
            draw_patches(row[number], view, colours.values[number], norm)
            _mark_sinks(row[number], view, number, with_value=sinks == "split")
            row[number].set_title(
                f"{layer_label(stack)} {layers_of[layer] + 1}", fontsize=SMALL_TITLE
            )
        for axis in row[len(view.maps) :]:  # a record with fewer layers than another
            axis.remove()
        used += row[: len(view.maps)].tolist()
    received = "attention received" if token is None else "attention of the token"
    scale = f"{received}, head mean (fraction; log, floor {norm.vmin:.2g})"
    figure = figure_of(axes)
    bar = figure.colorbar(
        used[0].collections[0],
        ax=used if ax is not None else figure.axes,
        location="bottom",
        label=scale,
        shrink=0.7,
        aspect=40,
        **LOG_BAR,
    )
    bar.minorticks_off()
    if ax is None:
        text = _heading(first, sample_index(first, sample, _CALLED), query_type, token)
        heading(figure, f"{text} · {', '.join(named)}")
    notes = [*preprocessing(named), *_on_bars(found)]
    if any(view.sinks is not None and view.sinks.any() for view in found):
        notes.append("× attention sink: outlying norm and attention, whatever the patch shows")
    caption(axes, notes, named, own=ax is None)
    return figure


def _heading(measured: xr.Dataset, sample: int, query_type: str, token: int | None) -> str:
    if token is None:
        who = f"{query_type} tokens look"
    else:
        who = f"token {token} ({str(measured['map_token'].values[sample, token])!r}) looks"
    several = measured.sizes["sample"] > 1
    return f"What {who} at" + f", sample {measured['sample'].values[sample]}" * several


def _on_bars(found: list[View]) -> list[str]:
    """How much of the attention on patches lies outside the image, on the bars of its padding."""
    notes = []
    for view in found:
        left, top, right, bottom = np.clip(view.boxes, 0, 1).T
        outside = (right <= left) | (bottom <= top)
        if not outside.any():
            continue
        percent = 100 * np.nansum(view.values[:, outside], 1) / np.nansum(view.values, 1)
        low, high = np.nanmin(percent), np.nanmax(percent)
        name = f"{view.title}: " if view.title else ""
        notes.append(
            f"{name}{low:.0f} to {high:.0f} % of the attention on patches, layer by layer, lies on "
            f"the bars, which are not drawn ({outside.sum()} of {len(outside)} patches)"
        )
    return notes


def _attention_on(
    measured: xr.Dataset, sample: int, query_type: str, token: int | None
) -> Float[np.ndarray, "layer key"]:
    """What each vision key receives: from a query type on average, or from one token of `maps`."""
    name = "received" if token is None else "maps"
    if name not in measured:
        raise ProbeError(
            _CALLED,
            expected=f"a record with {name!r}",
            got="one without",
            fix="measure a sample with an image" if token is None else "measure with maps",
        )
    values = measured[name].isel(sample=sample)
    if token is None:
        return values.sel(query_type=query_type).values
    tokens = values.sizes["token"]
    if not 0 <= token < tokens:
        raise ProbeError(_CALLED, expected=f"a token from 0 to {tokens - 1}", got=str(token))
    values = values.isel(token=token)
    return (values.mean("head") if "head" in values.dims else values).values


def views(
    record: xr.DataTree,
    measured: xr.Dataset,
    sample: int,
    values: Float[np.ndarray, "map key"],
    image: int | None = None,
    tile: int | None = None,
    maps: Sequence[int] | None = None,
    label: str = "",
) -> list[View]:
    """The views of a sample: each image as a whole, and its tiles together where it has any.

    values: of each patch, in several maps: layers, of which `maps` chooses some, or queries.
    `image` and `tile` choose one; `label` is the beginning of each title. Raises ProbeError where
    nothing is left.
    """
    keys, sinks = measured.isel(sample=sample), None
    if maps is None:
        maps = range(len(values))
    elif "key_sink" in keys:
        sinks = keys["key_sink"].values[maps] > 0
    values = values[maps]
    boxes, owner, tiles = (keys[name].values for name in ("key_box", "key_image", "key_tile"))
    placed = ~np.isnan(boxes).any(-1) & ~np.isnan(values).all(0)
    parts = {"": tiles == 0, "tiles": tiles > 0}
    if tile is not None:
        parts = {f"tile {tile}": tiles == tile}
    images = np.unique(owner[placed]).tolist()
    root = record.to_dataset()
    drawn = _evenly(images, keys, kept_images(root, sample)) if image is None else [image]
    found = []
    for number in drawn:
        pixels = small_image(root, sample, number)
        name = image_title(keys, number) if len(images) > 1 else ""
        for part, inside in parts.items():
            mask = placed & (owner == number) & inside
            if mask.any():
                title = ", ".join(filter(None, [label, name, part]))
                marked = None if sinks is None else sinks[:, mask]
                found.append(View(title, pixels, boxes[mask], values[:, mask], maps, marked))
    if not found:
        raise ProbeError(
            _CALLED,
            expected="vision tokens that were attended to",
            got=f"none in sample {keys['sample'].item()!r}, image {image}, tile {tile}",
        )
    return found


def _evenly(images: list[int], keys: xr.Dataset, kept: list[int]) -> list[int]:
    """All images; of a long video some frames, evenly chosen of those that the record kept."""
    if "key_frame" not in keys or len(images) <= _FRAMES:
        return images
    images = [image for image in images if image in kept] or images
    places = np.linspace(0, len(images) - 1, _FRAMES).round().astype(int)
    return [images[place] for place in places]


def image_title(keys: xr.Dataset, image: int) -> str:
    """ "image 2", or "frame 3, 2.0 s" of a video."""
    if "key_frame" in keys:
        own = (keys["key_image"].values == image) & (keys["key_frame"].values >= 0)
        if own.any():
            frame, time = (keys[name].values[own][0] for name in ("key_frame", "key_time"))
            return f"frame {frame + 1}, {time:.1f} s"
    return f"image {image + 1}"


def has_values(measured: xr.Dataset, sample: int | str, query_type: str) -> bool:
    """Whether `heatmaps` has something to draw for this sample and these queries."""
    if "received" not in measured or "key_box" not in measured:
        return False
    keys = measured.isel(sample=sample_index(measured, sample, _CALLED))
    received = keys["received"].sel(query_type=query_type).notnull()
    return bool((received & keys["key_box"].notnull().any("edge")).any())


def _mark_sinks(axis: Axes, view: View, number: int, with_value: bool) -> None:
    """A cross on each sink of the layer, or its value."""
    if view.sinks is None or not view.sinks[number].any():
        return
    marked = view.sinks[number]
    places = middles(view.boxes[marked], view.size)
    mark = {"color": SKY, "path_effects": outlined(2)}
    if not with_value:
        axis.plot(*places.T, "x", markersize=5, markeredgewidth=1.5, **mark)
        return
    for (x, y), value in zip(places, view.values[number][marked], strict=True):
        axis.text(x, y, f"×\n{value:.2g}", fontsize=6, ha="center", va="center", **mark)


def _grid(found: list[View], layers: int) -> np.ndarray:
    """(view, layer) Axes of a new figure, wrapped to several lines a view.

    The first panel of each view is the image itself, which is not among the Axes returned.
    """
    columns = min(_COLUMNS, layers + 1)
    lines = -(-(layers + 1) // columns)
    aspects = np.repeat([view.aspect for view in found], lines)
    size = (columns * _WIDTH, float((_WIDTH * aspects + 0.3).sum()) + 1.6)
    _, axes = plt.subplots(
        len(aspects), columns, figsize=size, squeeze=False, height_ratios=aspects.tolist()
    )
    blocks = axes.reshape(len(found), lines * columns)
    for axis in blocks[:, layers + 1 :].flat:
        axis.remove()
    for axis, view in zip(blocks[:, 0], found, strict=True):
        show_image(axis, view.pixels)
        axis.set_title(view.title or "image", fontsize=SMALL_TITLE, parse_math=False)
    return blocks[:, 1 : layers + 1]
