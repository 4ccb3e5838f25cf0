"""Where the patches of an image lie: image, tile, row, column, and a box in fractions of the
image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class PatchGrid:
    """Where the vision tokens of one sample lie, in the order of the sequence.

    `box` is left, top, right, bottom as fractions of the original image; it leaves [0, 1] where a
    patch shows padding. A token that is not a patch (NeXT's newlines, a CLS) has a box of NaN and
    tile = row = col = -1.
    """

    image: Int[np.ndarray, "key"]  # which image of the sample
    tile: Int[np.ndarray, "key"]  # 0 is the whole image, 1.. are the high-resolution tiles
    row: Int[np.ndarray, "key"]  # in the tile's grid of patches
    col: Int[np.ndarray, "key"]
    box: Float[np.ndarray, "key edge=4"]

    def __len__(self) -> int:
        return len(self.row)

    def variables(self, name: str) -> dict[str, np.ndarray]:
        """The arrays as variables of a dataset: `key_image`, ..., `key_box` for the name "key"."""
        return {f"{name}_{field.name}": getattr(self, field.name) for field in fields(self)}

    def at(self, index: Int[np.ndarray, "chosen"]) -> "PatchGrid":
        """The patches at `index`; -1 stands for a token that is not a patch."""
        tile, row, col = (
            np.where(index < 0, -1, axis[index]) for axis in (self.tile, self.row, self.col)
        )
        box = np.where(index[:, None] < 0, np.nan, self.box[index])
        return PatchGrid(self.image[index], tile, row, col, box)

    @classmethod
    def join(cls, grids: "Sequence[PatchGrid]") -> "PatchGrid":
        """The grids of a sample's images, one after the other (an empty one for none)."""
        empty = np.zeros(0, dtype=np.int64)
        grids = [cls(empty, empty, empty, empty, np.zeros((0, 4))), *grids]
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(grid, name) for grid in grids]) for name in names))
