"""Where patches lie on the pictures of a page, and which of two records' patches are the same."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from probe.viewer.typed_arrays import ArrayStore

NOWHERE: tuple[float, ...] = ()  # the place of a token that is no patch
GRID = ("box", "image", "tile", "row", "col")


def patches_of(grid: Mapping[str, np.ndarray], store: ArrayStore) -> dict[str, Any]:
    """The references of boxes, rows and columns of all patches, and the views they are drawn in:
    of each image the whole (tile 0), and all of its tiles together.
    """
    placed = ~np.isnan(grid["box"]).any(-1)
    views = []
    for image in np.unique(grid["image"][placed]).tolist():
        of_image = placed & (grid["image"] == image)
        for part, of_part in (("", grid["tile"] <= 0), ("tiles", grid["tile"] > 0)):
            keys = np.flatnonzero(of_image & of_part)
            if keys.size:
                views.append({"image": image, "part": part, "keys": store.add(keys)})
    images = sorted({view["image"] for view in views})
    return {"views": views, "images": images, **{name: store.add(grid[name]) for name in GRID}}


def match(
    grid: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> Int[np.ndarray, " key"]:
    """For each patch the one of another grid in the same place; -1 for none.

    >>> names = {"image": np.zeros(2), "tile": np.zeros(2)}
    >>> left, right = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
    >>> match(names | {"box": np.array([left, right])}, names | {"box": np.array([right, right])})
    array([-1,  1], dtype=int32)
    """
    places = dict(zip(_places(other), range(len(other["image"])), strict=True))
    places.pop(NOWHERE, None)
    return np.array([places.get(place, -1) for place in _places(grid)], np.int32)


def _places(grid: Mapping[str, np.ndarray]) -> list[tuple[float, ...]]:
    boxes: Float[np.ndarray, "key edge=4"] = np.round(grid["box"].astype(float), 3)
    return [
        NOWHERE if np.isnan(box).any() else (int(image), int(tile > 0), *box.tolist())
        for image, tile, box in zip(grid["image"], grid["tile"], boxes, strict=True)
    ]
