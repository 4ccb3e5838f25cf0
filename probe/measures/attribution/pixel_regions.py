"""Which region each pixel of the model's input shows, however a processor lays pixels out.

planes     (..., colour, row, column): LLaVA, InternVL (tiles), Idefics, Mllama
patches    (..., patch, number): Qwen-VL, GLM-4V, Gemma 4, Fuyu
           (..., colour, side, patches * side), as squares or in a strip: PaddleOCR-VL, MiniCPM-V

regions = PixelRegions.of(inputs, Regions.of("grid", inputs), patch=14)
regions.name                # "pixel_values"
regions.of_pixel            # (view, row, column) or (patch): a region, -1 for none
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.data.image_views import bounding_box
from probe.data.patch_grid import PatchGrid
from probe.measures.attribution.regions import NO_REGION, Regions, patches_of_pictures
from probe.subject.inputs import Inputs
from probe.subject.measured_views import holds_patches

COLOURS, NUMBERS = -3, -1  # the axis whose entries belong to one pixel, or to one patch


@dataclass(frozen=True)
class PixelRegions:
    """The region of each pixel (or patch) of the input `name`. `axis`: that of the input which is
    left out here, for all its entries lie in one region.
    """

    name: str
    of_pixel: Int[Tensor, "..."]
    axis: int

    @classmethod
    def of(cls, inputs: Inputs, regions: Regions, patch: int | None) -> "PixelRegions | None":
        """None where it is not known what the pixels show. `patch`: pixels along its side."""
        name = pixels_name(inputs)
        if name is None:
            return None
        values, grid = inputs[name], patches_of_pictures(inputs)
        has_planes = values.ndim >= 4 and values.shape[COLOURS] in (1, 3)
        axis = COLOURS if has_planes else NUMBERS
        if not holds_patches(values.shape, patch):
            region = _of_planes(values, grid, regions)
        elif has_planes:
            region = _of_squares(values, grid, regions)
        else:
            region = _of_patches(values.shape[:NUMBERS], grid, regions)
        if region is None or (region == NO_REGION).all():
            return None
        return cls(name, torch.from_numpy(region), axis)


def pixels_name(inputs: Mapping[str, Any]) -> str | None:
    """The name of the pixels among a model's inputs: those of images, or else of a video; None for
    a prompt without.

    >>> pixels_name({"ids": torch.ones(1, 4).int(), "pixel_values": torch.ones(1, 3, 8, 8)})
    'pixel_values'
    """
    real = [
        name
        for name, value in inputs.items()
        if torch.is_tensor(value) and value.is_floating_point() and value.ndim >= 2
    ]
    pixels = [name for name in real if name.startswith("pixel_values")]
    of_images = [name for name in pixels if "video" not in name]
    patches = [name for name in real if "patches" in name]
    return next(iter([*of_images, *patches, *pixels]), None)


def _of_planes(
    values: Float[Tensor, "..."], grid: PatchGrid, regions: Regions
) -> Int[np.ndarray, "..."] | None:
    """The region of each pixel of each view; -1 in views that only fill a batch up, and in what is
    added to a view until it is as large as the largest (Mistral 3).
    """
    before = values.shape[:COLOURS]
    height, width = values.shape[-2:]
    views = list(_views(grid))
    most_rows = max((view.size[0] for view in views), default=1)
    most_columns = max((view.size[1] for view in views), default=1)
    images = 1 + max((view.image for view in views), default=0)
    places = int(np.prod(before))
    places_an_image = before[-1]
    region = np.full((places, height, width), NO_REGION)
    for index, view in enumerate(views):
        rows, columns = view.size
        shown_height = height * rows // most_rows
        shown_width = width * columns // most_columns
        left, top, right, bottom = view.box
        x = left + (np.arange(shown_width) + 0.5) / shown_width * (right - left)
        y = top + (np.arange(shown_height) + 0.5) / shown_height * (bottom - top)
        if places == len(views):
            place = index
        elif places == images * places_an_image and view.number < places_an_image:
            place = view.image * places_an_image + view.number  # images of unequal length
        else:
            return None
        of_pixel = regions.at(view.image, *np.meshgrid(x, y))
        region[place, :shown_height, :shown_width] = of_pixel
    return region.reshape(*before, height, width)


def _of_squares(
    values: Float[Tensor, "..."], grid: PatchGrid, regions: Regions
) -> Int[np.ndarray, "..."] | None:
    """The region of each pixel of patches that are squares, one by one or side by side."""
    side = values.shape[-2]
    of_patch = _of_patches((*values.shape[:COLOURS], values.shape[-1] // side), grid, regions)
    if of_patch is None:
        return None
    of_column = np.repeat(of_patch, side, axis=-1)
    return np.repeat(of_column[..., None, :], side, axis=-2)


def _of_patches(
    before: Sequence[int], grid: PatchGrid, regions: Regions
) -> Int[np.ndarray, "..."] | None:
    """The region of each patch, by its middle; -1 for those that only fill a batch up."""
    region = np.full(before, NO_REGION)
    of_patch = regions.of_grid(grid)
    if region.size == len(of_patch):
        return of_patch.reshape(before)
    images = np.unique(grid.image)
    if len(before) != 2 or before[0] != len(images):
        return None
    for image in images:
        own = of_patch[grid.image == image]
        if len(own) > before[1]:
            return None
        region[image, : len(own)] = own
    return region


@dataclass(frozen=True)
class _View:
    """One view of an image: its number among those of the image, its patches (rows, columns),
    and its edges (left, top, right, bottom) in fractions of the image.
    """

    image: int
    number: int
    size: tuple[int, int]
    box: Float[np.ndarray, "edge=4"]


def _views(grid: PatchGrid) -> Iterator[_View]:
    """The views in the order of the model's input."""
    for image in dict.fromkeys(grid.image.tolist()):
        in_image = grid.image == image
        tiles = dict.fromkeys(grid.tile[in_image].tolist())
        for number, tile in enumerate(tiles):
            own = in_image & (grid.tile == tile)
            rows = int(grid.row[own].max()) + 1
            columns = int(grid.col[own].max()) + 1
            yield _View(image, number, (rows, columns), bounding_box(grid.box[own]))
