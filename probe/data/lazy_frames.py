"""The frames of a long video, opened one at a time, when they are looked at: all at once would
take more memory than there is.

    frames = open_video(Video("clip.mp4")).frames
    frames[3], len(frames), frames.at([0, 40])
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

LONG_VIDEO = 512  # frames: those of a longer one are opened when they are looked at


class LazyFrames(Sequence[Image.Image]):
    """Images that are not in memory. Each look at one makes it again."""

    @abstractmethod
    def frame(self, number: int) -> Image.Image:
        """The frame of this number, from 0."""

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return self.at(range(len(self))[number])
        return self.frame(range(len(self))[number])

    def at(self, numbers: Iterable[int]) -> tuple[Image.Image, ...]:
        """The frames of these numbers."""
        return tuple(self.frame(number) for number in numbers)


@dataclass(frozen=True, eq=False)
class ArrayFrames(LazyFrames):
    """Frames of an array."""

    array: UInt8[np.ndarray, "frame height width 3"]

    def __len__(self) -> int:
        return len(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArrayFrames) and np.array_equal(self.array, other.array)

    def frame(self, number: int) -> Image.Image:
        return Image.fromarray(self.array[number])


def frames_at(frames: Sequence[Image.Image], numbers: Sequence[int]) -> tuple[Image.Image, ...]:
    """Some of the frames, with one pass over a file.

    >>> len(frames_at(ArrayFrames(np.zeros((3, 2, 2, 3), np.uint8)), [0, 2]))
    2
    """
    if isinstance(frames, LazyFrames):
        return frames.at(numbers)
    return tuple(frames[number] for number in numbers)
