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
from probe.plots.image_views import views
from probe.plots.patches import (
    LOG_BAR,
    View,
    bar_ticks,
    draw_patches,
    log_scale,
    middles,
    outlined,
    preprocessing,
    show_image,
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
_WIDTH = 1.9  # of a panel, in inches
_NARROW = 2.5 * _WIDTH  # a figure on which the name of the scale takes two lines
VALUES = {"attention": "fraction", "lift": "÷ an even spread over the patches"}  # and units


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
    head: int | None = None,
    value: str = "attention",
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
        head: only that one, where the record holds single heads (`received_head=True`, or
            `maps="heads"` for a token); by default the mean over heads.
        value: "attention", or "lift": that divided by the mean over the sample's patches, so that
            1 is an even spread of what is on the image.
        floor: of the colours; by default what 99 % of the patches reach, at most three decades
            below the highest value.
        sinks: attention sinks (`probe.find_sinks`) always have a cross where the record knows
            them. With "drop" they have no colour and do not set the scale; with "split" their
            value is written on them as well.
        ax: the Axes to draw on, (views x layers) of them.

    Source: arXiv 2501.03895, Fig. 4. Raises ProbeError for a sample, query type, layer, image,
    tile, token, head or stack that a record does not have, for a record without numbers of
    patches, and for a floor above the highest value.
    """
    one_of(_CALLED, "a value of", value, VALUES)
    one_of(_CALLED, "sinks of", sinks, ("keep", "drop", "split"))
    records = labelled(record, _CALLED)
    first = node(next(iter(records.values())), stack)
    query_type = query_type or default_query(first)
    found: list[View] = []
    numbers: list[np.ndarray] = []  # of each view's layers
    for name, one in records.items():
        measured = node(one, stack)
        chosen(query_type, measured["query_type"].values.tolist(), _CALLED)
        index = sample_index(measured, sample, _CALLED)
        received = _attention_on(measured, index, query_type, token, head)
        if value == "lift":
            received = received / received.mean("key")
        values = received.transpose("layer", "key").values
        drawn = layer_indices(measured, layers, _CALLED)
        label = name if len(records) > 1 else ""
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
    whose = "attention received" if token is None else "attention of the token"
    heads = "head mean" if head is None else f"head {head + 1}"
    figure = figure_of(axes)
    width = float(figure.get_figwidth())
    is_narrow = width < _NARROW
    length = 1.0 if is_narrow else 0.7  # of the scale, as a part of the figure's width
    line_end = "\n" if is_narrow else " "
    scale = f"{whose}, {heads}{line_end}({VALUES[value]}; log, floor {norm.vmin:.2g})"
    options: dict[str, Any] = LOG_BAR | {"ticks": bar_ticks(norm, length * width)}
    bar = figure.colorbar(
        used[0].collections[0],
        ax=used if ax is not None else figure.axes,
        location="bottom",
        label=scale,
        shrink=length,
        aspect=40,
        **options,
    )
    bar.minorticks_off()
    if ax is None:
        text = _heading(first, sample_index(first, sample, _CALLED), query_type, token)
        heading(figure, f"{text} · {', '.join(records)}")
    notes = [*preprocessing(records), *_on_bars(found)]
    if any(view.sinks is not None and view.sinks.any() for view in found):
        notes.append("× attention sink: outlying norm and attention, whatever the patch shows")
    caption(axes, notes, records, own=ax is None)
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
        on_bars = np.nansum(view.values[:, outside], 1)
        percent = 100 * on_bars / np.nansum(view.values, 1)
        low = np.nanmin(percent)
        high = np.nanmax(percent)
        name = f"{view.title}: " if view.title else ""
        notes.append(
            f"{name}{low:.0f} to {high:.0f} % of the attention on patches, layer by layer, lies on "
            f"the bars, which are not drawn ({outside.sum()} of {len(outside)} patches)"
        )
    return notes


def _attention_on(
    measured: xr.Dataset, sample: int, query_type: str, token: int | None, head: int | None
) -> xr.DataArray:
    """What each vision key receives in each layer: from a query type on average, or from one token
    of `maps`; in one head, or as the mean over heads.
    """
    name = "maps" if token is not None else "received" if head is None else "received_head"
    fix = {"received": "measure a sample with an image", "maps": "measure with maps"}
    if name not in measured:
        raise ProbeError(
            _CALLED,
            expected=f"a record with {name!r}",
            got="one without",
            fix=fix.get(name, "measure with received_head=True"),
        )
    values = measured[name].isel(sample=sample)
    if token is None:
        values = values.sel(query_type=query_type)
    else:
        values = values.isel(token=_within("token", token, values.sizes["token"]))
    if head is not None and "head" not in values.dims:
        raise ProbeError(
            _CALLED,
            expected="a record with single heads of tokens",
            got="one with their mean",
            fix='measure with maps="heads"',
        )
    if head is not None:
        values = values.isel(head=_within("head", head, values.sizes["head"]))
    return values.mean("head") if "head" in values.dims else values


def _within(name: str, index: int, count: int) -> int:
    """The index, if it is one of the axis. Raises ProbeError otherwise."""
    if not 0 <= index < count:
        raise ProbeError(_CALLED, expected=f"a {name} from 0 to {count - 1}", got=str(index))
    return index


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
