"""The views of patches that a processor returns for several views of an image, one after the other.

A processor may return patches, and several views of each image: LFM2-VL, MiniCPM-V and Molmo 2 cut
large images. Which patches are one view is stated (rows and columns of each view in a tensor beside
the pixels), or is the first axis of the pixels. Patches are in order, row by row.

    lengths = stated_slices(tensors, patches=120)      # [(4, 6), (4, 4), ...]: rows, columns
    views_of_slices(x, y, image_of, slices)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from probe.subject.views_from_places import STRAIGHT, Shape, View


@dataclass(frozen=True)
class Slice:
    """The patches of one view, and the rows and columns that they may form."""

    patches: Int[np.ndarray, "_"]
    shapes: Sequence[Shape]


def stated_slices(tensors: Mapping[str, Any], patches: int) -> list[Shape]:
    """Rows and columns of each view, where a tensor of whole numbers states as many patches in all
    (`spatial_shapes`, `target_sizes`); empty where none does.
    """
    for value in tensors.values():
        is_shapes = torch.is_tensor(value) and value.ndim == 2 and value.shape[-1] == 2
        if is_shapes and not value.is_floating_point() and int(value.prod(-1).sum()) == patches:
            return [(int(rows), int(columns)) for rows, columns in value.tolist()]
    return []


def slices_of(real: Sequence[Int[np.ndarray, "_"]], stated: Sequence[Shape]) -> list[Slice] | None:
    """The views of patches. `real`: of each entry of the pixels' first axis those that are no
    padding. None where neither it nor what is stated says which patches are one view.
    """
    counts = [rows * columns for rows, columns in stated]
    every = np.concatenate([np.zeros(0, np.int64), *real])
    if counts and sum(counts) == len(every):
        ends = np.cumsum(counts)
        parts = np.split(every, ends[:-1])
        return [Slice(own, [shape]) for own, shape in zip(parts, stated, strict=True)]
    if len(real) < 2:
        return None
    return [Slice(own, shapes_of(len(own))) for own in real if len(own)]


def shapes_of(patches: int) -> list[Shape]:
    """Every number of rows and of columns that gives so many patches, the squarest first."""
    shapes = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    return sorted(shapes, key=lambda shape: max(shape) / min(shape))


def views_of_slices(
    x: Float[np.ndarray, "patch entry"],
    y: Float[np.ndarray, "patch entry"],
    image_of: Float[np.ndarray, "patch entry"],
    slices: Sequence[Slice],
) -> list[View] | None:
    """The view of each slice, from the places in the image that the entries of its patches show
    (`measured_views.py`); None where a slice's patches do not lie row by row.
    """
    found = []
    for part in slices:
        across, down = x[part.patches], y[part.patches]
        view = _view_of(across, down, round(float(np.nanmedian(image_of[part.patches]))), part)
        if view is None:
            return None
        found.append(view)
    return found


def _view_of(
    x: Float[np.ndarray, "patch entry"],
    y: Float[np.ndarray, "patch entry"],
    image: int,
    part: Slice,
) -> View | None:
    """The first of the shapes in which the patches lie, row by row."""
    for rows, columns in part.shapes:
        row, column = np.divmod(np.arange(rows * columns), columns)
        across, down = _edges(x, column, columns), _edges(y, row, rows)
        if across is not None and down is not None:
            box = np.array([across[0], down[0], across[1], down[1]])
            return View(image, box, rows, columns)
    return None


def _edges(
    places: Float[np.ndarray, "patch entry"], index: Int[np.ndarray, " patch"], count: int
) -> tuple[float, float] | None:
    """Where the first of `count` columns (or rows) of patches begins and the last one ends, of
    patches in the columns `index`. None where their middles are not on a straight line.
    """
    middles = np.nanmean(places, axis=1)
    if count == 1:
        # the spread of places that are evenly spread over the patch
        width = sqrt(12 * float(np.nanvar(places)))
        middle = float(middles.mean())
        return middle - width / 2, middle + width / 2
    slope, offset = np.polyfit(index + 0.5, middles, 1)
    if np.abs(offset + slope * (index + 0.5) - middles).max() > STRAIGHT or slope < 0:
        return None
    return float(offset), float(offset + slope * count)
