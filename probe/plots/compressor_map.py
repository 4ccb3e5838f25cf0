"""Where compressed tokens look: what of an image LLaVA-Mini puts into the few tokens that the LLM
reads (Fig. 12).

    plots.compression(record, sample="cat-1")

Patches of sub-images are drawn where they lie in the image, so that LLaVA-Mini-HD has one map.
"""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from probe.errors import ProbeError
from probe.plots.arguments import Records, one_record, sample_index
from probe.plots.image_views import views
from probe.plots.patches import LOG_BAR, View, draw_patches, log_scale, preprocessing, show_image
from probe.plots.style import SMALL_TITLE, caption, figure_of, heading, panels, styled
from probe.records import node

_CALLED = "plots.compression"
MOST_MAPS = 64  # of single queries
_SIDE = 2.6  # inches of a panel


@styled()
def compression(
    record: Records,
    sample: int | str = 0,
    *,
    image: int | None = None,
    layer: int | None = None,
    floor: float | None = None,
    ax: Any = None,
) -> Figure:
    """The attention of the compressor's queries to each patch, over the image.

    How to read it: bright patches have the largest part in the compressed tokens. From left to
    right: the image, the mean over all queries and the map of each: C x C queries at their places
    in a C x C block, those of a Q-Former or perceiver in their order, row by row. Colours are
    logarithmic as in `heatmaps` and shared by all maps; the caption has the entropy of the
    attention.

    Args:
        sample: index or id.
        image: only that one of several, from 0.
        layer: of a compressor with several, from 0; by default the last that reads patches.
        floor: of the colours.
        ax: one Axes for each image, for the means alone.

    Source: arXiv 2501.03895, Fig. 12. Raises ProbeError for a record without a compressor, and for
    a sample or image that it does not have.
    """
    name, one = one_record(record, _CALLED)
    measured, queries = _compressing(one)
    index = sample_index(measured, sample, _CALLED)
    compressor = _of_layer(measured.sel(query_type=[queries]), index, layer)
    found = views(one, measured, index, _maps(compressor, queries), image)
    norm = log_scale(found, floor, _CALLED)
    if ax is None:
        axes, bar_axis = _grid(found)
        place: dict[str, Any] = {"cax": bar_axis}
    else:
        axes = panels(ax, len(found), 1, (0, 0), _CALLED)
        place = {"ax": list(axes.flat), "shrink": 0.9, "pad": 0.02}
    for row, view in zip(axes, found, strict=True):
        titles = _titles(compressor)
        for number, (axis, text) in enumerate(zip(row, titles, strict=False)):
            draw_patches(axis, view, view.values[number], norm)
            axis.set_title(text, fontsize=7 if number else SMALL_TITLE)
        for axis in row[len(titles) :]:  # of a block that is not full
            axis.remove()
    figure = figure_of(axes)
    scale = f"attention to a patch, head mean\n(fraction; log, floor {norm.vmin:.2g})"
    bar = figure.colorbar(axes[0, 0].collections[0], **LOG_BAR, **place)
    bar.minorticks_off()
    bar.set_label(scale, fontsize=8)
    if ax is None:
        several = measured.sizes["sample"] > 1
        which = f", sample {measured['sample'].values[index]}" * several
        heading(figure, f"What is compressed{which} · {name}")
    notes = [_spread(compressor), *preprocessing({name: one})]
    notes += filter(None, [one.attrs.get("compression")])
    caption(axes, notes, {name: one}, own=ax is None)
    return figure


def _of_layer(measured: xr.Dataset, sample: int, layer: int | None) -> xr.Dataset:
    """One sample in one layer. Raises ProbeError for a layer that reads no patches."""
    reads = measured["received"].isel(sample=sample).notnull().any(["query_type", "key"]).values
    known = np.flatnonzero(reads).tolist() or [0]
    chosen = known[-1] if layer is None else layer
    if chosen not in known:
        expected = f"layer of {', '.join(map(str, known))}, which read patches"
        raise ProbeError(_CALLED, expected=expected, got=repr(layer))
    return measured.isel(sample=sample, layer=chosen)


def _compressing(record: xr.DataTree) -> tuple[xr.Dataset, str]:
    """The stack in which an image is compressed, and the type of the queries that do: in VoCo-LLaMA
    the LLM and its VoCo tokens.
    """
    if "compressor" not in record and "voco" in node(record, "llm")["query_type"].values:
        return node(record, "llm"), "voco"
    return node(record, "compressor"), "compressed"


def _maps(compressor: xr.Dataset, queries: str) -> Float[np.ndarray, "map key"]:
    """The mean over queries and, where there are several, the map of each after it."""
    mean = compressor["received"].sel(query_type=queries).values[None]
    if queries == "voco" or "maps" not in compressor or compressor.sizes["token"] < 2:
        return mean
    maps = compressor["maps"]
    maps = maps.mean("head") if "head" in maps.dims else maps
    return np.concatenate([mean, maps.transpose("token", "key").values[:MOST_MAPS]])


def _titles(compressor: xr.Dataset) -> list[str]:
    is_llm = "voco" in compressor["query_type"].values
    if is_llm:
        return [f"VoCo tokens, layer {int(compressor['layer']) + 1}"]
    queries = compressor.sizes["token"] if "maps" in compressor else 0
    if queries < 2:
        keys = compressor["key_count"].squeeze()
        patches = compressor["received"].notnull().sum("key")
        return ["each region's token" if keys < patches.max() else "the compressed token"]
    shown = min(queries, MOST_MAPS)
    side = _side(shown)
    in_order = [f"query {query + 1}" for query in range(shown)]
    places = (divmod(query, side) for query in range(shown))
    at_places = [f"row {row + 1}, column {column + 1}" for row, column in places]
    has_places = side**2 == queries and compressor.sizes["key_type"] == 1
    return [f"mean of {queries} queries", *(at_places if has_places else in_order)]


def _side(queries: int) -> int:
    """The side of the smallest square that holds that number of queries."""
    return math.isqrt(max(queries - 1, 0)) + 1 if queries else 0


def _grid(found: list[View]) -> tuple[np.ndarray, Axes]:
    """(image, map) Axes of a new figure, and those of the colour bar.

    A row has the image itself, the mean, and a block for the queries.
    """
    side = _side(len(found[0].values) - 1)
    block_width = max(1.0, 0.6 * side)
    widths = [1, 1, block_width] if side else [1, 1]
    heights = [widths[-1] * view.aspect for view in found]
    size = (sum(widths) * _SIDE + 1.1, max(sum(heights) * _SIDE + 0.9, 3.2))
    figure = plt.figure(figsize=size)
    columns = len(widths) + 1  # the last one for the colour bar
    ratios = {"width_ratios": [*widths, 0.06], "height_ratios": heights}
    outer = figure.add_gridspec(len(found), columns, **ratios)
    rows = []
    for row, view in enumerate(found):
        original = figure.add_subplot(outer[row, 0])
        show_image(original, view.pixels)
        text = view.title.removesuffix("tiles").rstrip(", ") or "image"
        original.set_title(text, fontsize=SMALL_TITLE, parse_math=False)
        axes = [figure.add_subplot(outer[row, 1])]
        if side:
            axes += _block(figure, outer[row, 2], side)
        rows.append(axes)
    return np.array(rows, dtype=object), figure.add_subplot(outer[:, -1])


def _block(figure: Figure, place: SubplotSpec, side: int) -> list[Axes]:
    inner = place.subgridspec(side, side)
    return [figure.add_subplot(inner[row, col]) for row in range(side) for col in range(side)]


def _spread(compressor: xr.Dataset) -> str:
    patches = compressor.sel(key_type="vision")
    entropy = float(patches["entropy"].squeeze())
    keys = int(patches["key_count"].squeeze())
    most = math.log(max(keys, 1))
    return f"entropy {entropy:.2f} nat of at most {most:.2f}, heads averaged first; {keys} patches"
