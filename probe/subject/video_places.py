"""Which frames, and which part of them, each vision token of a video shows, for any processor.

    places = video_places(model, processor, aspect, process, clip, tokens)
    places.grid.frame, places.grid.time, places.grid.box

As for images, the processor is asked (`measured_views.py`), here with as many frames as the video
has: black and white ones, ramps along x and y, and frames in a grey of their own, whose value is
the number of the frame in base 256. A picture that the encoder gets then says which frame it is; a
patch that holds entries of several frames (Qwen-VL joins two) says the first and the last of them.

All pictures of a video are cut alike, so that one tells the places in all. How its tokens divide a
picture follows from their number, as for images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from transformers import PreTrainedModel

from probe.data.clip import Clip
from probe.data.image_views import Size
from probe.data.patch_grid import PatchGrid
from probe.hooks.model_structure import cls_tokens
from probe.subject.measured_views import SHOWN, grey, pixels_of, ramp, stated_shapes
from probe.subject.token_grid import encoder_grid, vision_grid
from probe.subject.token_places import (
    has_learned_queries,
    patch_size,
    patches_of,
    stated_cells,
)
from probe.subject.view_cells import divided
from probe.subject.views_from_places import View, views_of_patches, views_of_planes

Process = Callable[[Sequence[Image.Image]], Mapping[str, Any]]  # a video's frames to tensors
BASE = 256  # greys that 8 bits tell apart


@dataclass(frozen=True)
class VideoPlaces:
    """The vision tokens of a video in the order of the sequence; the patches of one of the pictures
    that the encoder gets of it (none where that is not known); and how many pictures these are.
    """

    grid: PatchGrid
    patches: PatchGrid
    pictures: int


@dataclass(frozen=True)
class Pictures:
    """The pictures of a video: the views that each group of frames is shown in, and the first and
    the last frame of each group."""

    views: list[View]
    spans: list[tuple[int, int]]


def video_places(
    model: PreTrainedModel, processor: Any, aspect: str, process: Process, clip: Clip, tokens: int
) -> VideoPlaces:
    """Where the `tokens` vision tokens of a clip lie, whose frames are images from 0 on. `aspect`:
    as in `Subject`.
    """
    count = len(clip.frames)
    if hasattr(model.config, "tokens_per_frame"):
        return _of_square_frames(model, processor, aspect, clip)
    pictures = measured_pictures(process, clip.frames[0].size, count, patch_size(model))
    if pictures is None:
        return VideoPlaces(_unknown(tokens, count, clip), PatchGrid.join([]), count)
    groups = len(pictures.spans)
    first, last = np.array(pictures.spans).T
    patches = patches_of(pictures.views)
    for newline in (0, 1):  # behind all frames, where the model has one
        of_group, rest = divmod(tokens - newline, groups)
        cells = None if rest else _cells(model, pictures.views, of_group)
        if cells is None:
            continue
        grid = PatchGrid.join([cells] * groups)
        in_order = np.repeat(first, of_group), np.repeat(last, of_group)
        grid = grid.in_frames(*in_order, clip.times)
        return VideoPlaces(PatchGrid.join([grid, *_nowhere(newline)]), patches, groups)
    return VideoPlaces(_unknown(tokens, groups, clip, (first, last)), patches, groups)


def _of_square_frames(
    model: PreTrainedModel, processor: Any, aspect: str, clip: Clip
) -> VideoPlaces:
    """LLaVA-Mini: frames are squashed to a square and compressed one by one."""
    side = model.config.vision_config.image_size
    squares = [(side, side)] * len(clip.frames)
    grid = vision_grid(model, processor, squares, aspect)
    assert grid is not None  # nothing is packed
    grid = grid.in_frames(grid.image, grid.image, clip.times)
    return VideoPlaces(grid, encoder_grid(model, processor, squares[:1], aspect), len(squares))


def _cells(model: PreTrainedModel, views: Sequence[View], tokens: int) -> PatchGrid | None:
    """How the tokens divide the views of one group of frames, None where it is not known."""
    if (stated := stated_cells(model, views, tokens)) is not None:
        return stated
    if has_learned_queries(model, tokens // max(1, len(views))):
        return None
    if hasattr(model.base_model, "apply_pooling"):  # interpolated to half as many, rounded up
        views = [
            View(view.image, view.box, -(-view.rows // 2), -(-view.columns // 2)) for view in views
        ]
    found = (divided(views, tokens, before) for before in {0, cls_tokens(model)})
    return next((grid for grid in found if grid is not None), None)


def _nowhere(count: int) -> list[PatchGrid]:
    none = np.full(count, -1)
    return [PatchGrid(np.zeros_like(none), none, none, none, np.full((count, 4), np.nan))]


def _unknown(
    tokens: int,
    groups: int,
    clip: Clip,
    spans: tuple[Int[np.ndarray, "group"], Int[np.ndarray, "group"]] | None = None,
) -> PatchGrid:
    """Tokens without a place in their frame; and of unknown frames, unless each group of frames has
    as many.
    """
    (grid,) = _nowhere(tokens)
    if tokens % groups:
        return grid
    spans = (np.arange(groups), np.arange(groups)) if spans is None else spans
    first, last = (np.repeat(frames, tokens // groups) for frames in spans)
    return grid.in_frames(first, last, clip.times)


def measured_pictures(
    process: Process, size: Size, count: int, patch: int | None
) -> Pictures | None:
    """The pictures that the encoder gets of `count` frames of one size (width, height); None where
    what the processor returns doesn't say, or where they differ from group to group.
    """

    stated = []

    def values(frames: Sequence[Image.Image]) -> Float[np.ndarray, "picture ..."] | None:
        tensors = process(frames)
        stated[:] = stated_shapes(tensors)
        pixels = pixels_of(tensors)
        if pixels is None:
            return None
        is_planes = pixels.ndim >= 4 and pixels.shape[-3] in (1, 3)
        kept = pixels.shape[-3:] if is_planes else pixels.shape[-1:]
        return pixels.reshape(-1, *kept).astype(np.float32)

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
    if number is None or not shows.any():
        return None
    real = shows.any(axis=tuple(range(1, shows.ndim)))  # others fill up a batch
    inner = tuple(range(1, number.ndim))
    first = np.nanmin(number[real], axis=inner).astype(int)
    last = np.nanmax(number[real], axis=inner).astype(int)
    spans = sorted(set(zip(first.tolist(), last.tolist(), strict=True)))
    members = [(first == start) & (last == end) for start, end in spans]
    if len({int(member.sum()) for member in members}) > 1:
        return None
    x, y = greys([ramp(size)] * count), greys([ramp(size, down=True)] * count)
    if x is None or y is None:
        return None
    of_x, of_y = x[real][members[0]], y[real][members[0]]
    zeros = np.where(np.isnan(of_x), np.nan, 0.0)
    if black.ndim == 4:
        views = views_of_planes(of_x, of_y, zeros, [size], patch or 1)
    else:
        views = views_of_patches(of_x, of_y, zeros, [size], stated)
    return None if views is None else Pictures(views, spans)


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
