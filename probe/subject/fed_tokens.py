"""Vision tokens that are made of several tensors of pixels: the whole image in one, tiles in
another (Step 3.7, Unlimited-OCR).

No setting says which token is made of which. The model is asked, with noise in one tensor at a
time (`marker_tokens.py`): tokens that the LLM is given otherwise are made of it. Those of tiles
come tile by tile, or row by row over all tiles of an image, which then are one sheet.

    places_of_tensors(model, tensors, is_token, {"pixel_values": views, "pixel_values_local": more})
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Bool
from transformers import PreTrainedModel

from probe.data.image_views import bounding_box
from probe.data.patch_grid import PatchGrid
from probe.subject.marker_tokens import unchanged_tokens
from probe.subject.view_cells import cells_of, divided, nowhere
from probe.subject.views_from_places import View

APART = 0.01  # of the image: edges of tiles of one sheet lie nearer to each other


def places_of_tensors(
    model: PreTrainedModel,
    tensors: Mapping[str, Any],
    is_token: Bool[np.ndarray, " position"],
    views: Mapping[str, Sequence[View]],
) -> PatchGrid | None:
    """Where the vision tokens lie. `views`: those of each tensor of pixels. None where tensors make
    the same tokens, or where the views of one can't be divided into those that it makes.
    """
    tokens = int(is_token.sum())
    grids = [nowhere(0, 1)]
    place = np.zeros(tokens, dtype=np.int64)  # the first: a token that is made of none
    for name, own_views in views.items():
        unchanged = unchanged_tokens(model, tensors, is_token, name)
        if unchanged is None or (place[~unchanged] > 0).any():
            return None
        own = np.flatnonzero(~unchanged)
        grid = _divided(own_views, own)
        if grid is None:
            return None
        start = sum(map(len, grids))
        place[own] = start + np.arange(len(grid))
        grids.append(grid)
    if not place.any():
        return None
    # what is made of none belongs to the image before it
    known = np.maximum.accumulate(np.where(place > 0, np.arange(tokens), -1))
    joined = PatchGrid.join(grids).at(place)
    image = joined.image[np.where(known < 0, int((place > 0).argmax()), known)]
    return PatchGrid(image, joined.tile, joined.row, joined.col, joined.box)


def _divided(views: Sequence[View], own: np.ndarray) -> PatchGrid | None:
    """The tokens that these views are divided into. `own`: which of all tokens they are."""
    runs = [len(list(run)) for _, run in groupby(own - np.arange(len(own)))]
    sheets = _sheets(views)
    most = min((min(sheet.rows, sheet.columns) for sheet in sheets), default=0)
    for side in range(1, most + 1):
        cells = [cells_of(sheet, tile=1, side=side) for sheet in sheets]
        rows = [cells_in_row for own_cells in cells for cells_in_row in _rows(own_cells)]
        if rows == runs and len(sheets) < len(views):
            return PatchGrid.join(cells)
    return divided(views, len(own))


def _rows(cells: PatchGrid) -> list[int]:
    return [len(list(row)) for _, row in groupby(cells.row.tolist())]


def _sheets(views: Sequence[View]) -> list[View]:
    """The tiles of each image as one view, where they lie beside each other row by row; else the
    views themselves.
    """
    sheets = []
    for image, own in groupby(views, key=lambda view: view.image):
        tiles = list(own)
        box = bounding_box(np.array([tile.box for tile in tiles]))
        columns = len([tile for tile in tiles if abs(tile.box[1] - box[1]) < APART])
        rows = len(tiles) // columns
        first = tiles[0]
        row, column = np.divmod(np.arange(len(tiles)), columns)
        width, height = (box[2:] - box[:2]) / [columns, rows]
        left = box[0] + column * width
        top = box[1] + row * height
        even = np.stack([left, top, left + width, top + height], axis=1)
        apart = np.abs(np.array([tile.box for tile in tiles]) - even).max()
        is_alike = all((tile.rows, tile.columns) == (first.rows, first.columns) for tile in tiles)
        if rows * columns != len(tiles) or not is_alike or apart > APART:
            return list(views)
        sheets.append(View(image, box, rows * first.rows, columns * first.columns))
    return sheets
