"""Which frames, and which part of them, each vision token of a video shows, for any processor.

    places = video_places(model, processor, aspect, process, clip, tensors)
    places.grid.frame, places.grid.time, places.grid.box

The processor says which frames each picture shows that the encoder gets (`video_pictures.py`). How
the tokens divide a picture follows from their number, as for images. A model may join several
pictures (ERNIE-4.5-VL two, Kimi K2.5 four): where their number fits in one way alone it says how
many, or else the model is asked which tokens depend on the first picture.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool
from transformers import PreTrainedModel

from probe.data.clip import Clip
from probe.data.patch_grid import PatchGrid
from probe.hooks.model_structure import cls_tokens, vision_positions
from probe.subject.marker_tokens import rows_of, unchanged_tokens
from probe.subject.token_grid import encoder_grid, vision_grid
from probe.subject.token_places import has_learned_queries, patch_size, patches_of, stated_cells
from probe.subject.video_pictures import Pictures, Process, measured_pictures
from probe.subject.view_cells import cells_of, divided, nowhere, tile_numbers
from probe.subject.views_from_places import View


@dataclass(frozen=True)
class VideoPlaces:
    """The vision tokens of a video in the order of the sequence; the patches of one of the pictures
    that the encoder gets of it (none where that is not known); and how many pictures these are.
    """

    grid: PatchGrid
    patches: PatchGrid
    pictures: int


def video_places(
    model: PreTrainedModel,
    processor: Any,
    aspect: str,
    process: Process,
    clip: Clip,
    tensors: Mapping[str, Any],
) -> VideoPlaces:
    """Where the vision tokens of a clip lie, whose frames are images from 0 on. `aspect`: as in
    `Subject`; `tensors`: what the processor makes of a prompt with this clip alone.
    """
    count = len(clip.frames)
    is_token = vision_positions(model, tensors["input_ids"])[0].numpy()
    tokens = int(is_token.sum())
    if hasattr(model.config, "tokens_per_frame"):
        return _of_square_frames(model, processor, aspect, clip)
    pictures = measured_pictures(process, clip.frames[0].size, count, patch_size(model))
    if pictures is None:
        return VideoPlaces(nowhere(0, tokens), PatchGrid.join([]), count)
    patches = patches_of(pictures.views)
    groups = len(pictures.spans)
    fitting = list(_ways(model, pictures, tokens))
    if len(fitting) != 1 or not _is_even(fitting[0], pictures.views):
        unchanged = partial(unchanged_tokens, model, tensors, is_token)
        fitting = _asked(fitting, pictures, unchanged)
    if not fitting:
        return VideoPlaces(nowhere(0, tokens), patches, groups)
    way = fitting[0]
    spans = pictures.spans
    firsts = spans[:: way.joined]
    lasts = [spans[min(start + way.joined, groups) - 1] for start in range(0, groups, way.joined)]
    first = np.repeat([start for start, _ in firsts], way.tokens)
    last = np.repeat([end for _, end in lasts], way.tokens)
    grid = PatchGrid.join([way.cells] * len(firsts)).in_frames(first, last, clip.times)
    return VideoPlaces(PatchGrid.join([grid, nowhere(0, way.newlines)]), patches, groups)


@dataclass(frozen=True)
class Way:
    """One way in which a video's tokens may be made: the pictures that are joined, the tokens of
    each joint picture and where they lie in it, and the tokens behind all of them.
    """

    joined: int
    tokens: int
    cells: PatchGrid
    newlines: int


def _ways(model: PreTrainedModel, pictures: Pictures, tokens: int) -> Iterator[Way]:
    """All ways that give so many tokens: those in which the tokens divide a picture evenly, or else
    all others.
    """
    groups = len(pictures.spans)
    ways = []
    for newlines in (0, 1):  # behind all frames, where the model has one
        for joined in range(1, groups + 1):
            of_group, rest = divmod(tokens - newlines, -(-groups // joined))
            cells = _cells(model, pictures.views, of_group) if of_group and not rest else None
            if cells is not None:
                ways.append(Way(joined, of_group, cells, newlines))
    even = [way for way in ways if _is_even(way, pictures.views)]
    yield from even or ways


def _is_even(way: Way, views: Sequence[View]) -> bool:
    """Whether its cells are of one size in each view and leave nothing out."""
    box = way.cells.box
    placed = ~np.isnan(box).any(axis=1)
    areas = np.prod(box[placed, 2:] - box[placed, :2], axis=1)
    whole = [float(np.prod(view.box[2:] - view.box[:2])) for view in views]
    of_view = [areas[way.cells.tile[placed] == tile] for tile in tile_numbers(views)]
    sums = [float(own.sum()) for own in of_view]
    return np.allclose(sums, whole) and all(np.ptp(own) < 1e-6 for own in of_view if len(own))


def _asked(
    ways: Sequence[Way],
    pictures: Pictures,
    unchanged: Callable[..., Bool[np.ndarray, " token"] | None],
) -> list[Way]:
    """The way in which those tokens are the first joint picture's that noise in it changes, and the
    marks between them; where it can't be said, that in which none are joined, if any.
    """
    is_marker = unchanged()
    starts = []
    for entries in pictures.entries:
        is_other = None if is_marker is None else unchanged(entries=entries)
        if is_marker is None or is_other is None or is_other.all():
            return [way for way in ways if way.joined == 1]
        starts.append(int((~is_other).argmax()))
        if starts[-1] > starts[0]:
            break
    assert is_marker is not None
    joined = starts.count(starts[0])
    joint = -(-len(pictures.spans) // joined)
    of_group = starts[-1] - starts[0] or len(is_marker)
    newlines = len(is_marker) - joint * of_group
    found = [way for way in ways if (way.joined, way.tokens) == (joined, of_group)]
    if found or starts[0] or newlines not in (0, 1):
        return found
    rows = rows_of(pictures.views[:1], [is_marker[:of_group]])
    cells = nowhere(0, of_group)
    if rows is not None and len(pictures.views) == 1:
        side, (index,) = rows
        cells = cells_of(pictures.views[0], 0, side).at(index)
    return [Way(joined, of_group, cells, newlines)]


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
