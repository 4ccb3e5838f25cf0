"""Which part of the image is one feature: a patch, a cell of patches, or a mask of the user's.

A region is known by the points it contains, as fractions of the original image. So it is the same
region in every view that the model has of the image (the whole, tiles, padded or cropped) and for
every vision token that lies in it.

    regions = Regions.of("grid", inputs)
    regions.at(image=0, x=np.array([0.5]), y=np.array([0.5]))      # the region in the middle
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from probe.data.image_views import bounding_box
from probe.data.patch_grid import PatchGrid
from probe.errors import ProbeError
from probe.subject.inputs import Inputs

CELL = {"patches": 1, "grid": 2}  # patches along a side of a region
NO_REGION = -1

RegionMask = np.ndarray | Mapping[str, Any]
Over = str | RegionMask | Sequence[Any]
Lookup = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x, y -> region of its image


@dataclass(frozen=True)
class Regions:
    """The regions of a sample's images, numbered consecutively; one lookup an image."""

    names: tuple[str, ...]
    lookups: tuple[Lookup, ...]

    def at(
        self, image: int, x: Float[np.ndarray, "*point"], y: Float[np.ndarray, "*point"]
    ) -> Int[np.ndarray, "*point"]:
        """The region of each point, -1 for none. Points are fractions of the image; NaN is in no
        region.
        """
        is_known = ~(np.isnan(x) | np.isnan(y))
        outside = -9.0
        known_x = np.where(is_known, x, outside)
        known_y = np.where(is_known, y, outside)
        region = self.lookups[image](known_x, known_y)
        return np.where(is_known, region, NO_REGION)

    def of_grid(self, grid: PatchGrid) -> Int[np.ndarray, "key"]:
        """The region that contains the centre of each patch or vision token, -1 for newlines and
        other tokens without a place.
        """
        left, top, right, bottom = grid.box.T
        x = (left + right) / 2
        y = (top + bottom) / 2
        region = np.full(len(grid), NO_REGION)
        for image in range(len(self.lookups)):
            in_image = grid.image == image
            region[in_image] = self.at(image, x[in_image], y[in_image])
        return region

    @classmethod
    def of(cls, over: Over, inputs: Inputs, has_places: bool = True) -> "Regions":
        """`over`: "patches", "grid" (cells of 2 x 2 patches), a mask, {name: mask}, or a list with
        one of the last two for each image. Where patches are merged before the LLM (Qwen-VL,
        InternVL), a patch is what one of its vision tokens shows. `has_places`: whether a
        vision token is made of one place of the image.

        A mask has the height and width of its image; in one of whole numbers, each number above 0
        is a region. Frames that are joined before the LLM have the regions of the first of them.
        Raises ProbeError for an unknown name, another size, an empty mask, and masks
        that overlap.
        """
        images = inputs.images[0]
        shown_with = _shown_with(inputs)
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
            parts = []
            for image, first in enumerate(shown_with):
                if first < image:
                    parts.append(([], parts[first][1]))
                    continue
                grid = _divided(inputs, image) if has_places else patches_of_pictures(inputs)
                parts.append(_cells(grid, image, CELL[over]))
        else:
            masks: list[Any] = list(over) if isinstance(over, list | tuple) else [over]
            if len(masks) != len(images):
                expected = f"a mask for each of {len(images)} images"
                raise ProbeError("attribute", expected=expected, got=str(len(masks)))
            parts = [_masked(mask, image.size) for mask, image in zip(masks, images, strict=True)]
            _check_joined(masks, shown_with)
        names: list[str] = []
        lookups: list[Lookup] = []
        for image, (image_names, lookup) in enumerate(parts):
            if (first := shown_with[image]) < image:
                lookups.append(lookups[first])
                continue
            lookups.append(_shifted(lookup, len(names)))
            prefix = f"image {image + 1}, " if len(parts) > 1 else ""
            names += [prefix + name for name in image_names]
        return cls(tuple(names), tuple(lookups))


def patches_of_pictures(inputs: Inputs) -> PatchGrid:
    """The encoder's patches of every picture that it gets. Of a video, whose pictures are cut
    alike, each picture's: its image is the first frame that it shows.
    """
    patches, tokens = inputs.encoder_grid[0], inputs.grid[0]
    if not (tokens.frame >= 0).any():
        return patches
    return PatchGrid.join([patches.shifted(frame) for frame in np.unique(tokens.image).tolist()])


def _shown_with(inputs: Inputs) -> list[int]:
    """For each image the first one that its vision tokens show: of frames that are joined (Qwen-VL)
    the first, else the image itself.
    """
    first = list(range(len(inputs.images[0])))
    tokens = inputs.grid[0]
    joined = tokens.last_frame - tokens.frame
    for image, more in sorted({*zip(tokens.image.tolist(), joined.tolist(), strict=True)}):
        for other in range(image + 1, image + more + 1):
            first[other] = image
    return first


def _divided(inputs: Inputs, image: int) -> PatchGrid:
    """The grid that divides an image: the LLM's vision tokens where they merge patches, else the
    encoder's patches.
    """
    patches = patches_of_pictures(inputs)
    tokens = inputs.grid[0]
    of_patches = _base_boxes(patches, image)
    of_tokens = _base_boxes(tokens, image)
    if not len(of_patches) and not len(of_tokens):
        raise ProbeError(
            "attribute",
            expected="images whose patches have known places",
            got=f"none of image {image + 1}",
            fix="divide it by masks, or use over='words'",
        )
    if not len(of_patches):  # images and a video in one prompt: the encoder is given both apart
        return tokens
    if not 0 < len(of_tokens) < len(of_patches) or np.isnan(of_tokens).any():
        return patches
    # merged tokens cover the image; those that a reducer has left do not
    return tokens if np.isclose(_area(of_tokens), _area(of_patches), rtol=1e-3) else patches


def _base_boxes(grid: PatchGrid, image: int) -> Float[np.ndarray, "cell edge=4"]:
    is_base = (grid.image == image) & (grid.tile == 0)
    return grid.box[is_base]


def _area(boxes: Float[np.ndarray, "cell edge=4"]) -> float:
    """The area of rectangles that do not overlap."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return float(np.prod(sides, axis=1).sum())


def _shifted(lookup: Lookup, by: int) -> Lookup:
    def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        region = lookup(x, y)
        return np.where(region == NO_REGION, NO_REGION, region + by)

    return at


def _cells(grid: PatchGrid, image: int, cell: int) -> tuple[list[str], Lookup]:
    """Cells of `cell` x `cell` patches of the image's base view, named by row and column of their
    first patch, counted from 1.
    """
    base = (grid.image == image) & (grid.tile == 0)
    row = grid.row[base]
    col = grid.col[base]
    box = grid.box[base]
    rows = int(row.max()) + 1
    columns = int(col.max()) + 1
    left, top, right, bottom = bounding_box(box)
    across = -(-columns // cell)
    kind = "patch" if cell == 1 else "cell"
    names = [
        f"{kind} row {first_row + 1} column {first_column + 1}"
        for first_row in range(0, rows, cell)
        for first_column in range(0, columns, cell)
    ]

    def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        r = np.floor((y - top) / (bottom - top) * rows).astype(int)
        c = np.floor((x - left) / (right - left) * columns).astype(int)
        is_inside = (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
        return np.where(is_inside, r // cell * across + c // cell, NO_REGION)

    return names, at


def _masked(mask: RegionMask, size: tuple[int, int]) -> tuple[list[str], Lookup]:
    """The regions of the masks of one image of size (width, height)."""
    width, height = size
    if not isinstance(mask, Mapping):
        mask = _split(_checked(mask, width, height))
    labels = np.full((height, width), NO_REGION)
    for number, (name, part) in enumerate(mask.items()):
        is_inside = _checked(part, width, height).astype(bool)
        if not is_inside.any():
            raise ProbeError(
                "attribute",
                expected="a mask that is not empty",
                got=f"an empty one for {name!r}",
            )
        if (labels[is_inside] != NO_REGION).any():
            raise ProbeError(
                "attribute", expected="masks that do not overlap", got=f"{name!r} over another"
            )
        labels[is_inside] = number

    def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        column = np.floor(x * width).astype(int)
        line = np.floor(y * height).astype(int)
        nearest_column = column.clip(0, width - 1)
        nearest_line = line.clip(0, height - 1)
        is_inside = (nearest_column == column) & (nearest_line == line)
        return np.where(is_inside, labels[nearest_line, nearest_column], NO_REGION)

    return [str(name) for name in mask], at


def _check_joined(masks: Sequence[RegionMask], shown_with: Sequence[int]) -> None:
    """Raises ProbeError where frames that the model joins have masks of their own."""
    for image, first in enumerate(shown_with):
        own = _as_dict(masks[image])
        other = _as_dict(masks[first])
        are_equal = own.keys() == other.keys() and all(
            np.array_equal(part, other[name]) for name, part in own.items()
        )
        if not are_equal:
            raise ProbeError(
                "attribute",
                expected=f"the same mask for images {first + 1} and {image + 1}, frames that the "
                "model joins",
                got="different ones",
            )


def _as_dict(mask: RegionMask) -> Mapping[str, Any]:
    return mask if isinstance(mask, Mapping) else {"": mask}


def _checked(
    mask: Any, width: int, height: int
) -> Bool[np.ndarray, "y x"] | Integer[np.ndarray, "y x"]:
    array = np.asarray(mask)
    if array.shape != (height, width) or array.dtype.kind not in "biu":
        shape = " x ".join(map(str, array.shape)) or type(mask).__name__
        raise ProbeError(
            "attribute",
            expected=f"a mask of {height} x {width} (height x width of the image), of booleans or "
            "whole numbers",
            got=f"{shape} of {array.dtype}",
        )
    return array


def _split(mask: np.ndarray) -> dict[str, Bool[np.ndarray, "y x"]]:
    """One mask for each number above 0."""
    if mask.dtype == bool:
        return {"mask": mask}
    numbers = np.unique(mask[mask > 0])
    if not len(numbers):
        raise ProbeError("attribute", expected="a mask that is not empty", got="an empty one")
    return {f"region {number}": mask == number for number in numbers}
