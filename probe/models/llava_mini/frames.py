"""The frames of a batch, one after the other: an image is one, a video has several.

frames = list_frames(visuals, rows=2, images=pixel_values, videos=None)
for chunk in chunks(frames, config.frames_per_chunk): ...     # frames of the same shape
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from probe.models.llava_mini.placeholder_layout import PlacedVisual, rows_without


class Frame(NamedTuple):
    """An image, or a frame of a video, before the vision tower."""

    pixels: Float[Tensor, "view 3 height width"]
    row: int  # of the batch
    place: int  # among all frames of the batch; -1 for the all-zero frame of a text-only row


def list_frames(
    visuals: Sequence[PlacedVisual], rows: int, images: Any, videos: Any
) -> list[Frame]:
    """All frames of a batch in order, then an all-zero one for each row without an image.

    The authors train text-only rows of an image batch with such a dummy, so their words are fused
    too.
    """
    frames: list[Frame] = []
    for visual in visuals:
        if visual.video:
            pixels = videos[visual.index, : visual.frames]
        else:
            pixels = images[visual.index : visual.index + 1]
        frames += [Frame(frame, visual.row, len(frames) + i) for i, frame in enumerate(pixels)]
    like = videos[0] if images is None else images  # even an empty batch has a frame's shape
    blank = like.new_zeros(like.shape[1:])
    without = rows_without([visual.row for visual in visuals], rows)
    return frames + [Frame(blank, row, -1) for row in without]


def chunks(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Groups of at most `size` consecutive frames of the same shape."""
    chunk: list[Frame] = []
    for frame in frames:
        if chunk and (len(chunk) == size or chunk[0].pixels.shape != frame.pixels.shape):
            yield chunk
            chunk = []
        chunk.append(frame)
    if chunk:
        yield chunk


def single_video(frames: Iterable[Tensor]) -> Iterator[Frame]:
    """Frames of row 0, each with its view axis."""
    for place, frame in enumerate(frames):
        yield Frame(frame if frame.ndim == 4 else frame[None], 0, place)
