"""Which part of the image is one feature: a patch, a cell of patches, or what the user has masked.

A region is known by the points it holds, as fractions of the original image. So it is the same
region for every view that the model has of the image (the whole, tiles, padded or cropped) and for
every vision token that lies in it.

    regions = Regions.of("grid", inputs)
    regions.at(image=0, x=np.array([0.5]), y=np.array([0.5]))      # the region in the middle
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probe.data.patch_grid import PatchGrid
from probe.errors import ProbeError
from probe.subject.inputs import Inputs

CELL = {"patches": 1, "grid": 2}  # patches along a side of a region
NONE = -1

Mask = np.ndarray | Mapping[str, Any]
Over = str | Mask | Sequence[Any]
Lookup = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x, y -> region of its image


@dataclass(frozen=True)
class Regions:
    """The regions of a sample's images, numbered through; `lookups` has one function an image."""

    names: tuple[str, ...]
    lookups: tuple[Lookup, ...]

    def at(
        self, image: int, x: Float[np.ndarray, "*point"], y: Float[np.ndarray, "*point"]
    ) -> Int[np.ndarray, "*point"]:
        """The region of each point, -1 for none. Points are fractions of the image; NaN lies
        nowhere.
        """
        known = ~(np.isnan(x) | np.isnan(y))
        found = self.lookups[image](np.where(known, x, -9.0), np.where(known, y, -9.0))
        return np.where(known, found, NONE)

    def of_grid(self, grid: PatchGrid) -> Int[np.ndarray, "key"]:
        """The region that the middle of each patch or vision token lies in, -1 for newlines and the
        like.
        """
        x, y = (grid.box[:, 0] + grid.box[:, 2]) / 2, (grid.box[:, 1] + grid.box[:, 3]) / 2
        found = np.full(len(grid), NONE)
        for image in range(len(self.lookups)):
            mine = grid.image == image
            found[mine] = self.at(image, x[mine], y[mine])
        return found

    @classmethod
    def of(cls, over: Over, inputs: Inputs) -> "Regions":
        """`over`: "patches", "grid" (cells of 2 x 2 patches), a mask, {name: mask}, or one of these
        an image.

        A mask has the height and width of its image; of whole numbers, each above 0 is a region.
        Raises ProbeError for an unknown name, another size, a mask without anything in it, and
        masks that overlap.
        """
        images = inputs.images[0]
        if not images:
            raise ProbeError(
                "attribute",
                expected="an image to take regions of",
                got="none",
                fix="use over='words'",
            )
        if isinstance(over, str):
            if over not in CELL:
                expected = "over='patches', 'grid', 'words', 'layers' or a mask"
                raise ProbeError("attribute", expected=expected, got=repr(over))
            parts = [
                _lattice(inputs.encoder_grid[0], image, CELL[over]) for image in range(len(images))
            ]
        else:
            each = list(over) if isinstance(over, list | tuple) else [over]
            if len(each) != len(images):
                raise ProbeError(
                    "attribute",
                    expected=f"a mask for each of {len(images)} images",
                    got=str(len(each)),
                )
            parts = [_masked(mask, image.size) for mask, image in zip(each, images, strict=True)]
        return cls._joined(parts)

    @classmethod
    def _joined(cls, parts: list[tuple[list[str], Lookup]]) -> "Regions":
        names, lookups = [], []
        for number, (own, lookup) in enumerate(parts, 1):
            lookups.append(_shifted(lookup, len(names)))
            names += [f"image {number}, {name}" if len(parts) > 1 else name for name in own]
        return cls(tuple(names), tuple(lookups))


def _shifted(lookup: Lookup, by: int) -> Lookup:
    def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        found = lookup(x, y)
        return np.where(found == NONE, NONE, found + by)

    return at


def _lattice(grid: PatchGrid, image: int, cell: int) -> tuple[list[str], Lookup]:
    """Cells of the image's base view, named by row and column of their first patch, counted from
    1.
    """
    base = (grid.image == image) & (grid.tile == 0)
    row, col, box = grid.row[base], grid.col[base], grid.box[base]
    rows, columns = int(row.max()) + 1, int(col.max()) + 1
    left, top, right, bottom = *box[:, :2].min(0), *box[:, 2:].max(0)
    across, down = -(-columns // cell), -(-rows // cell)
    names = [
        f"{kind_of(cell)} {r * cell + 1},{c * cell + 1}" for r in range(down) for c in range(across)
    ]

    def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        r = np.floor((y - top) / (bottom - top) * rows).astype(int)
        c = np.floor((x - left) / (right - left) * columns).astype(int)
        inside = (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
        return np.where(inside, r // cell * across + c // cell, NONE)

    return names, at


def kind_of(cell: int) -> str:
    return "patch" if cell == 1 else "cell"


def _masked(mask: Any, size: tuple[int, int]) -> tuple[list[str], Lookup]:
    width, height = size
    named = mask if isinstance(mask, Mapping) else _regions_in(_fitting(mask, width, height))
    labels = np.full((height, width), NONE)
    for number, (name, part) in zip(count(), named.items(), strict=False):
        inside = _fitting(part, width, height).astype(bool)
        if not inside.any():
            raise ProbeError(
                "attribute",
                expected="a mask with something in it",
                got=f"an empty one for {name!r}",
            )
        if (labels[inside] != NONE).any():
            raise ProbeError(
                "attribute", expected="masks that do not overlap", got=f"{name!r} over another"
            )
        labels[inside] = number

    def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        column, line = np.floor(x * width).astype(int), np.floor(y * height).astype(int)
        inside = (column >= 0) & (column < width) & (line >= 0) & (line < height)
        return np.where(inside, labels[line.clip(0, height - 1), column.clip(0, width - 1)], NONE)

    return [str(name) for name in named], at


def _fitting(mask: Any, width: int, height: int) -> np.ndarray:
    array = np.asarray(mask)
    if array.shape != (height, width) or array.dtype.kind not in "biu":
        raise ProbeError(
            "attribute",
            expected=f"a mask of {height} x {width} (height x width of the image), of booleans or "
            "whole numbers",
            got=f"{' x '.join(map(str, array.shape)) or type(mask).__name__} of {array.dtype}",
        )
    return array


def _regions_in(mask: np.ndarray) -> dict[str, np.ndarray]:
    if mask.dtype == bool:
        return {"mask": mask}
    if not (mask > 0).any():
        raise ProbeError("attribute", expected="a mask with something in it", got="an empty one")
    return {f"region {number}": mask == number for number in np.unique(mask[mask > 0])}
