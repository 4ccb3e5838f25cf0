"""Where compressed tokens look: what of an image LLaVA-Mini puts into the few tokens that the LLM
reads (Fig. 12).

    plots.compression(record, sample="cat-1")

The patches of sub-images lie where they lie in the image, so that HD is one map.
"""

import math
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.errors import ProbeError
from probe.plots.on_image import draw_patches, fitted, log_scale, show_image
from probe.plots.style import caption, labelled, panels
from probe.plots.views import View, index_of, views
from probe.records import node

_SIDE = 2.6  # inches of a panel


def compression(
    record: xr.DataTree,
    sample: int | str = 0,
    *,
    image: int | None = None,
    floor: float | None = None,
    ax: Any = None,
) -> np.ndarray:
    """The attention of the compressor's queries to each patch, over the image: of all of them on
    average, and with more than one query (C x C) each in its place of a C x C block.

    sample: index or id. image: only that one of several. Colours are logarithmic from `floor` as in
    `heatmaps`, and shared. ax: as many Axes as there are images, for the averages alone. Returns
    Axes of shape (images, maps), the average first.

    Source: arXiv 2501.03895, Fig. 12. Raises ProbeError for a record without a compressor, and for
    a sample or image that it does not have.
    """
    named = labelled(record, "plots.compression")
    if len(named) > 1:
        raise ProbeError(
            "plots.compression",
            expected="one record",
            got=str(len(named)),
            fix="draw them one by one",
        )
    ((name, record),) = named.items()
    measured = node(record, "compressor")
    index = index_of(measured, sample)
    found = list(views(record, measured, index, _values(measured, index), image))
    norm = log_scale(found, floor)
    if ax is None:
        axes, bar = _grid(found)
    else:
        axes = panels(ax, len(found), 1, (0, 0), "plots.compression")
        bar = {"ax": list(axes.flat), "shrink": 0.9, "pad": 0.02}
    for row, view in zip(axes, found, strict=True):
        queries = len(view.values) - 1
        for axis, values, title in zip(row, view.values, _titles(queries), strict=False):
            patches = draw_patches(axis, view, values, norm)
            axis.set_title(title, fontsize=9 if title.startswith(("mean", "the")) else 7)
    figure: Any = axes.flat[0].figure
    scale = f"attention to a patch, head mean\n(fraction; log, floor {norm.vmin:.2g})"
    figure.colorbar(patches, extend="min", **bar).set_label(scale, fontsize=8)
    if ax is None:
        called = str(measured["sample"].values[index])
        figure.suptitle(
            f"What is compressed · {called}", x=0.01, ha="left", fontsize=11, parse_math=False
        )
    caption(
        axes, [_spread(measured, index), *fitted({name: record})], {name: record}, own=ax is None
    )
    return axes


def _values(measured: xr.Dataset, sample: int) -> Float[np.ndarray, "map key"]:
    """The average, and behind it the map of each query where there are several."""
    here = measured.isel(sample=sample, layer=0)
    average = here["received"].sel(query_type="compressed").values[None]
    if "maps" not in here or here.sizes["token"] < 2:
        return average
    maps = here["maps"].mean("head") if "head" in here["maps"].dims else here["maps"]
    return np.concatenate([average, maps.transpose("token", "key").values])


def _titles(queries: int) -> Iterator[str]:
    side = math.isqrt(queries)
    yield f"mean of {queries} queries" if queries else "the compressed token"
    for query in range(queries):
        yield f"row {query // side + 1}, column {query % side + 1}"


def _grid(found: list[View]) -> tuple[np.ndarray, dict[str, Axes]]:
    """(image, map) Axes of a new figure: the image itself, the average, and the queries as a block.
    And those of the colour bar."""
    maps = len(found[0].values)
    side = math.isqrt(maps - 1)
    widths = [1, 1, *([max(1.0, 0.6 * side)] if side else [])]
    shapes = [view.pixels.shape if view.pixels.size else (1, 1) for view in found]
    heights = [widths[-1] * min(height / width, 2) for height, width, *_ in shapes]
    size = (sum(widths) * _SIDE + 1.1, max(sum(heights) * _SIDE + 0.9, 3.2))
    figure = plt.figure(figsize=size, layout="constrained")
    outer = figure.add_gridspec(
        len(found), len(widths) + 1, width_ratios=[*widths, 0.06], height_ratios=heights
    )
    rows = []
    for row, view in enumerate(found):
        original = figure.add_subplot(outer[row, 0])
        show_image(original, view.pixels)
        original.set_title(
            view.title.removesuffix("tiles").rstrip(", ") or "image", fontsize=9, parse_math=False
        )
        rows.append(
            [
                figure.add_subplot(outer[row, 1]),
                *(_block(figure, outer[row, 2], side) if side else []),
            ]
        )
    return np.array(rows, dtype=object), {"cax": figure.add_subplot(outer[:, -1])}


def _block(figure: Figure, place: Any, side: int) -> list[Axes]:
    inner = place.subgridspec(side, side)
    return [figure.add_subplot(inner[row, col]) for row in range(side) for col in range(side)]


def _spread(measured: xr.Dataset, sample: int) -> str:
    here = measured.isel(sample=sample, layer=0)
    entropy, keys = float(here["entropy"].squeeze()), int(here["key_count"].squeeze())
    return f"entropy {entropy:.2f} nat of at most {math.log(max(keys, 1)):.2f}, heads averaged first; {keys} patches"
