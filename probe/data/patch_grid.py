"""Where the patches of an image lie: image, tile, row, column, and a box in fractions of the
image; of a video's patches, frame and time too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from jaxtyping import Bool, Float, Int

OF_FRAMES = ("frame", "last_frame", "time")  # fields that only a video's tokens have
NONE = np.zeros(0)


@dataclass(frozen=True)
class PatchGrid:
    """Where the vision tokens of one sample lie, in the order of the sequence.

    `box` is left, top, right, bottom as fractions of the original image; it leaves [0, 1] where a
    patch shows padding. A token that is not a patch (NeXT's newlines, a CLS) has a box of NaN and
    tile = row = col = -1. The frames of a video count as images one by one; `frame` counts them
    within their video, and is -1 (`time` NaN) for other images.
    """

    image: Int[np.ndarray, "key"]  # which image of the sample, or frame
    tile: Int[np.ndarray, "key"]  # 0 is the whole image, 1.. are the high-resolution tiles
    row: Int[np.ndarray, "key"]  # in the tile's grid of patches
    col: Int[np.ndarray, "key"]
    box: Float[np.ndarray, "key edge=4"]
    # Of a video: the frame, from 0, of those that the model is shown; the last one where a token
    # shows several (Qwen-VL: two); their time in seconds, the mean where they are several.
    frame: Int[np.ndarray, "key"] = field(default_factory=lambda: NONE)
    last_frame: Int[np.ndarray, "key"] = field(default_factory=lambda: NONE)
    time: Float[np.ndarray, "key"] = field(default_factory=lambda: NONE)

    def __post_init__(self) -> None:
        if self.frame is not NONE:
            return
        none = np.full(len(self.row), -1)
        object.__setattr__(self, "frame", none)
        object.__setattr__(self, "last_frame", none)
        object.__setattr__(self, "time", np.full(len(self.row), np.nan))

    def __len__(self) -> int:
        return len(self.row)

    def variables(self, name: str) -> dict[str, np.ndarray]:
        """The arrays as variables of a dataset: `key_image`, ..., `key_box` for the name "key";
        those of frames only where there is a video.
        """
        left_out = () if (self.frame >= 0).any() else OF_FRAMES
        names = [each.name for each in fields(self) if each.name not in left_out]
        return {f"{name}_{each}": getattr(self, each) for each in names}

    def at(self, index: Int[np.ndarray, "chosen"]) -> "PatchGrid":
        """The patches at `index`; -1 stands for a token that is not a patch."""
        is_patch = index >= 0
        tile = np.where(is_patch, self.tile[index], -1)
        row = np.where(is_patch, self.row[index], -1)
        col = np.where(is_patch, self.col[index], -1)
        box = np.where(is_patch[:, None], self.box[index], np.nan)
        of_frames = (self.frame[index], self.last_frame[index], self.time[index])
        return PatchGrid(self.image[index], tile, row, col, box, *of_frames)

    def shows(self, frames: Sequence[int]) -> Bool[np.ndarray, "key"]:
        """Which of them show one of these frames of a video."""
        first = self.frame[:, None]
        last = self.last_frame[:, None]
        numbers = np.asarray(frames, dtype=np.int64)[None]
        inside = (first >= 0) & (first <= numbers) & (numbers <= last)
        return np.asarray(inside.any(axis=1))

    def shifted(self, images: int) -> "PatchGrid":
        """The same places in images that come after `images` others."""
        return replace(self, image=self.image + images)

    def in_frames(
        self,
        first: Int[np.ndarray, "key"],
        last: Int[np.ndarray, "key"],
        times: Float[np.ndarray, "frame"],
    ) -> "PatchGrid":
        """The same places in the frames of a video, each of which is an image: each place shows the
        frames from `first` to `last`.
        """
        ranges = zip(first, last, strict=True)
        shown = np.array([times[start : end + 1].mean() for start, end in ranges])
        return PatchGrid(first, self.tile, self.row, self.col, self.box, first, last, shown)

    @classmethod
    def join(cls, grids: "Sequence[PatchGrid]") -> "PatchGrid":
        """The grids of a sample's images, one after the other (an empty one for none)."""
        empty = np.zeros(0, dtype=np.int64)
        grids = [cls(empty, empty, empty, empty, np.zeros((0, 4))), *grids]
        names = [each.name for each in fields(cls)]
        return cls(*(np.concatenate([getattr(grid, name) for grid in grids]) for name in names))
