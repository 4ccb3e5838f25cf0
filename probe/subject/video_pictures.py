"""The pictures that an encoder gets of the frames of a video: which frames each shows, and where.

As for images, the processor is asked (`measured_views.py`), here with as many frames as the video
has: black and white ones, ramps along x and y, and frames in a grey of their own, whose value is
the number of the frame in base 256. A picture that the encoder gets then says which frame it is; a
patch that holds entries of several frames (Qwen-VL joins two) says the first and the last of them.

All pictures of a video are cut alike, so that one tells the places in all.

    measured_pictures(process, (64, 48), count=5, patch=8).spans     # [(0, 1), (2, 3), (4, 4)]
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image

from probe.data.image_views import Size
from probe.subject.measured_views import (
    SHOWN,
    grey,
    holds_patches,
    patch_by_patch,
    pixels_of,
    ramp,
)
from probe.subject.view_slices import Slice, stated_slices, views_of_slices
from probe.subject.views_from_places import View, views_of_patches, views_of_planes

Process = Callable[[Sequence[Image.Image]], Mapping[str, Any]]  # a video's frames to tensors
BASE = 256  # greys that 8 bits tell apart


@dataclass(frozen=True)
class Pictures:
    """The pictures of a video: the views that each is shown in, the first and the last frame of
    each, in the encoder's order, and the entries of each among those of all pixels.
    """

    views: list[View]
    spans: list[tuple[int, int]]
    entries: list[Int[np.ndarray, "_"]]


def measured_pictures(
    process: Process, size: Size, count: int, patch: int | None
) -> Pictures | None:
    """The pictures that the encoder gets of `count` frames of one size (width, height); None where
    what the processor returns doesn't say, or where they differ from group to group.
    """

    made: list[Mapping[str, Any]] = []

    def values(frames: Sequence[Image.Image]) -> Float[np.ndarray, "entry ..."] | None:
        tensors = process(frames)
        made[:] = [tensors]
        pixels = pixels_of(tensors)
        if pixels is None:
            return None
        if holds_patches(pixels.shape, patch):
            by_entry = patch_by_patch(pixels, patch)
        else:
            by_entry = pixels.reshape(-1, *pixels.shape[-3:])
        return by_entry.astype(np.float32)

    black = values([Image.new("RGB", size, "black")] * count)
    white = values([Image.new("RGB", size, "white")] * count)
    if black is None or white is None or black.shape != white.shape:
        return None
    shows = np.abs(white - black) > SHOWN * np.abs(white - black).max(initial=0.0)

    def greys(frames: Sequence[Image.Image]) -> np.ndarray | None:
        found = values(frames)
        if found is None or found.shape != black.shape:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(shows, (found - black) / (white - black), np.nan)

    number = _frame_numbers(greys, size, count)
    x, y = greys([ramp(size)] * count), greys([ramp(size, down=True)] * count)
    if number is None or x is None or y is None or not shows.any():
        return None
    real = np.flatnonzero(shows.any(axis=tuple(range(1, shows.ndim))))  # others fill up a batch
    inner = tuple(range(1, number.ndim))
    first = np.nanmin(number[real], axis=inner).astype(int)
    last = np.nanmax(number[real], axis=inner).astype(int)
    blocks = _blocks(made[0], first, last)
    if len({len(block) for block in blocks}) != 1:
        return None
    spans = [(int(first[block].min()), int(last[block].max())) for block in blocks]
    of_x, of_y = x[real][blocks[0]], y[real][blocks[0]]
    views = _views(of_x, of_y, size, patch, made[0])
    return None if views is None else Pictures(views, spans, [real[block] for block in blocks])


def _blocks(
    tensors: Mapping[str, Any], first: Int[np.ndarray, " entry"], last: Int[np.ndarray, " entry"]
) -> list[Int[np.ndarray, "_"]]:
    """The entries of each picture: as many as the processor states in time, of so many rows and
    columns; or else those that show the same frames.
    """
    entries = np.arange(len(first))
    for name, grid in tensors.items():
        if name.endswith("grid_thw") and tuple(grid.shape) == (1, 3):
            times, rows, columns = (int(edge) for edge in torch.as_tensor(grid)[0])
            if times * rows * columns == len(entries):
                return np.split(entries, times)
    spans = sorted(set(zip(first.tolist(), last.tolist(), strict=True)))
    return [np.flatnonzero((first == start) & (last == end)) for start, end in spans]


def _views(
    x: Float[np.ndarray, "entry ..."],
    y: Float[np.ndarray, "entry ..."],
    size: Size,
    patch: int | None,
    tensors: Mapping[str, Any],
) -> list[View] | None:
    """The views of the first picture, from the places that its entries show."""
    zeros = np.where(np.isnan(x), np.nan, 0.0)
    if x.ndim == 4:
        return views_of_planes(x, y, zeros, [size], patch or 1)
    shapes = [
        (int(rows), int(columns))
        for name, grid in tensors.items()
        if name.endswith("grid_thw")
        for _, rows, columns in torch.as_tensor(grid)
    ]
    slices = _first_slices(tensors, len(x))
    if slices:
        return views_of_slices(x, y, zeros, slices)
    return views_of_patches(x, y, zeros, [size], shapes)


def _first_slices(tensors: Mapping[str, Any], patches: int) -> list[Slice]:
    """The views of so many patches of the first picture, where their rows and columns are stated
    for each view of all pictures (MiniCPM-V); empty where they are not.
    """
    for value in tensors.values():
        is_shapes = torch.is_tensor(value) and value.ndim == 2 and value.shape[-1] == 2
        if not is_shapes or value.is_floating_point():
            continue
        ends = value.prod(-1).cumsum(0).tolist()
        if patches in ends:
            shapes = stated_slices({"": value[: ends.index(patches) + 1]}, patches)
            starts = [0, *ends]
            return [
                Slice(np.arange(start, start + rows * columns), [(rows, columns)])
                for start, (rows, columns) in zip(starts, shapes, strict=False)
            ]
    return []


def _frame_numbers(
    greys: Callable[[Sequence[Image.Image]], np.ndarray | None], size: Size, count: int
) -> np.ndarray | None:
    """The number of the frame that each entry comes from, NaN for padding: one digit after the
    other is shown as a grey.
    """
    number: Any = 0
    place = 1
    while place == 1 or place < count:
        digits = [index // place % BASE for index in range(count)]
        frames = {digit: grey(size, digit) for digit in set(digits)}
        shown = greys([frames[digit] for digit in digits])
        if shown is None:
            return None
        number = number + place * np.round(shown * (BASE - 1))
        place *= BASE
    return number
