"""Attention over the time of a video: which frame matters.

plots.frames(record)                      # lines over time above a strip of frames
plots.animation(record, "clip.gif")       # the frames one after the other, patches coloured
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from probe.errors import ProbeError
from probe.plots.arguments import default_query, layer_indices, one_record, sample_index
from probe.plots.patches import (
    LOG_BAR,
    View,
    bar_ticks,
    draw_patches,
    kept_images,
    log_scale,
    show_image,
    small_image,
)
from probe.plots.style import (
    RIGHT,
    SMALL_TITLE,
    caption,
    heading,
    layer_label,
    legend,
    panels,
    styled,
)
from probe.records import node
from probe.records.video_frames import frame_attention

_STRIP = 8  # frames that are shown below the lines
_SIZE = (8.0, 4.6)  # inches
_ANIMATED = (10.0, 3.9)
_ABOVE = 1.05  # of the highest value: where its axis ends
_LINES = 4  # layers that have a line of their own, unless they are chosen


@styled()
def frames(
    record: Any,
    sample: int | str = 0,
    query_type: str | None = None,
    layers: int | Sequence[int] | None = None,
    stack: str = "llm",
    *,
    video: int = 0,
    ax: Any = None,
) -> Figure | Axes:
    """The attention that each frame of a video receives, over time, and a strip of the frames.

    How to read it: a line is the attention of a query of the type to all tokens of a frame, in one
    layer; the thick line is the mean over all layers. The frames below stand at their time.

    Args:
        sample: index or id.
        query_type: by default the response, or what comes nearest to it and was measured.
        layers: an index from 0 or several; by default four evenly spread.
        video: which of the sample's videos, from 0.
        ax: one Axes for the lines alone, which is returned.

    Raises ProbeError for a record without a video, and for what it does not have.
    """
    called = "plots.frames"
    name, record = one_record(record, called)
    measured = node(record, stack)
    query_type = query_type or default_query(measured)
    index = sample_index(measured, sample, called)
    values = frame_attention(record, index, query_type, stack, video)
    chosen = layer_indices(measured, layers, called)
    if layers is None:
        measured_layers = values.notnull().any("frame").values
        chosen = [layer for layer in chosen if measured_layers[layer]]
        chosen = [chosen[place] for place in _spread(len(chosen), _LINES)]
    if ax is None:
        figure, (axis, strip) = plt.subplots(2, 1, figsize=_SIZE, height_ratios=(3, 1), sharex=True)
    else:
        (axis,) = panels(ax, 1, 1, (0, 0), called).ravel()
        figure, strip = axis.figure, None
    time = values["time"].values
    size = 4 if len(time) > 1 else 8  # a single point is no line
    for layer in chosen:
        line = values.isel(layer=layer).values
        axis.plot(time, line, "o-", ms=size, lw=1, label=f"{layer_label(stack)} {layer + 1}")
    mean = values.mean("layer", skipna=True).values
    axis.plot(time, mean, "kD-", ms=size, lw=2.5, label="mean over layers")
    axis.set(ylabel=f"attention of {query_type}\non the frame (fraction)")
    axis.set_ylim(0, _ABOVE * axis.dataLim.ymax or 1.0)
    if len(time) == 1:
        axis.set_xticks(time)
    legend(axis, **RIGHT)
    if strip is None:
        axis.set(xlabel="time in the video (s)")
    else:
        _draw_strip(strip, record.to_dataset(), index, values)
        heading(figure, f"Which frames {query_type} tokens look at · {name}")
    notes = ["attention on a frame: the sum over its tokens; mean over heads"]
    caption(axis, notes, {name: record}, own=ax is None)
    return figure if ax is None else axis


def has_frames(measured: xr.Dataset, sample: int | str) -> bool:
    """Whether `frames` has something to draw for this sample."""
    if "key_frame" not in measured or "received" not in measured:
        return False
    index = sample_index(measured, sample, "plots.frames")
    return bool((measured["key_frame"].values[index] >= 0).any())


def _spread(count: int, most: int) -> list[int]:
    """At most so many places, evenly spread over all."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _draw_strip(strip: Axes, root: xr.Dataset, sample: int, values: xr.DataArray) -> None:
    """Small frames below the axis of time; nothing where the record kept none."""
    kept = kept_images(root, sample)
    images = [int(image) for image in values["image"].values if image in kept]
    strip.set(yticks=[], xlabel="time in the video (s)", ylim=(0, 1))
    strip.spines[:].set_visible(False)
    if not images:
        return
    time = dict(zip(values["image"].values.tolist(), values["time"].values, strict=True))
    span = max(time.values()) - min(time.values())
    shown = [images[place] for place in _spread(len(images), _STRIP)]
    width = (span or 1.0) / max(len(shown), 2) * 0.9
    for image in shown:
        pixels = small_image(root, sample, image)
        middle = time[image]
        inner = strip.inset_axes((middle - width / 2, 0, width, 1), transform=strip.transData)
        show_image(inner, pixels)
        inner.set_title(f"{middle:.1f} s", fontsize=SMALL_TITLE)
    strip.set_xlim(min(time.values()) - width / 2, max(time.values()) + width / 2)


@styled()
def animation(
    record: Any,
    path: str | Path,
    sample: int | str = 0,
    query_type: str | None = None,
    layers: int | Sequence[int] | None = None,
    stack: str = "llm",
    *,
    video: int = 0,
    fps: int = 2,
) -> Path:
    """Writes the kept frames of a video as an animated GIF: each frame, its patches coloured by the
    attention that they receive (mean over `layers`, all by default), and the curve over time.

    `fps`: pictures a second. Returns the path. Raises ProbeError as `frames` does, for a record
    that kept no frames, and for a path that does not end in .gif.
    """
    called, path = "plots.animation", Path(path)
    if path.suffix.lower() != ".gif":
        raise ProbeError(called, expected="a path that ends in .gif", got=repr(str(path)))
    name, record = one_record(record, called)
    measured, root = node(record, stack), record.to_dataset()
    query_type = query_type or default_query(measured)
    index = sample_index(measured, sample, called)
    values = frame_attention(record, index, query_type, stack, video)
    if layers is not None:
        values = values.isel(layer=layer_indices(measured, layers, called))
    views = _views_of_frames(measured, root, index, values, query_type)
    if not views:
        raise ProbeError(called, expected="a record that kept frames", got="none of this video")
    scale = log_scale(list(views.values()), None, called)
    mean, time = values.mean("layer").values, values["time"].values
    highest = _ABOVE * float(mean.max()) or 1.0
    figure, (shown, left, right) = plt.subplots(1, 3, figsize=_ANIMATED)
    ticks = bar_ticks(scale, 0.25 * _ANIMATED[0])
    options: dict[str, Any] = LOG_BAR | {"ticks": ticks}
    figure.colorbar(
        ScalarMappable(scale, "inferno"),
        ax=[shown, left],
        location="bottom",
        label=f"attention received, head mean (fraction; log, floor {scale.vmin:.2g})",
        shrink=0.7,
        aspect=40,
        **options,
    ).minorticks_off()

    def draw(image: int) -> None:
        at = int(np.flatnonzero(values["image"].values == image)[0])
        for axis in (shown, left, right):
            axis.clear()
        show_image(shown, views[image].pixels)
        draw_patches(left, views[image], views[image].values[0], scale)
        shown.set_title(f"{time[at]:.1f} s", fontsize=SMALL_TITLE)
        right.plot(time, mean, "k.-", lw=1.5)
        right.plot(time[at], mean[at], "o", ms=9, color="tab:red")
        right.set(xlabel="time in the video (s)", ylabel="attention on\nthe frame (fraction)")
        right.set_ylim(0, highest)
        if len(time) == 1:
            right.set_xticks(time)

    heading(figure, f"What {query_type} tokens look at · {name}")
    made = FuncAnimation(figure, draw, frames=list(views), cache_frame_data=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path, writer=PillowWriter(fps=fps))
    plt.close(figure)
    return path


def _views_of_frames(
    measured: xr.Dataset, root: xr.Dataset, sample: int, values: xr.DataArray, query_type: str
) -> dict[int, View]:
    """By number of the image: its patches, coloured by the mean over the layers of `values`."""
    keys = measured.isel(sample=sample)
    received = keys["received"].sel(query_type=query_type, layer=values["layer"].values)
    colours = received.mean("layer").values[None]
    placed = ~np.isnan(keys["key_box"].values).any(-1)
    kept = set(kept_images(root, sample))
    views = {}
    for image in values["image"].values.tolist():
        own = placed & (keys["key_image"].values == image)
        if image in kept and own.any():
            pixels = small_image(root, sample, image)
            views[image] = View("", pixels, keys["key_box"].values[own], colours[:, own])
    return views
