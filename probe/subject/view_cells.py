"""How vision tokens divide the views of an image: cells of s x s patches, row by row.

divided([View(0, whole, rows=4, columns=6)], tokens=6)     # 2 x 3 cells of 2 x 2 patches
"""

from collections.abc import Iterator, Sequence

import numpy as np

from probe.data.image_views import within
from probe.data.patch_grid import PatchGrid
from probe.subject.views_from_places import View


def divided(views: Sequence[View], tokens: int, before: int = 0) -> PatchGrid | None:
    """The tokens that the views are divided into, row by row, each of s x s patches; `before` of
    each view stand before them and are not patches. Where no s divides all views into as many,
    patches that are left over at an end are a smaller cell, or no token's (Mistral 3). None where
    no s gives that number of tokens.
    """
    cells = tokens - before * len(views)
    for side, shown in _with_sides(views):
        counts = [-(-view.rows // side) * -(-view.columns // side) for view in shown]
        if sum(counts) == cells and all(counts):
            grids = []
            for view, tile in zip(shown, tile_numbers(views), strict=True):
                grids += [nowhere(view.image, before), cells_of(view, tile, side)]
            return PatchGrid.join(grids)
    return None


def _with_sides(views: Sequence[View]) -> Iterator[tuple[int, Sequence[View]]]:
    """Each s, and what of the views is divided: first those that divide all of them."""
    edges = [edge for view in views for edge in (view.rows, view.columns)]
    if not all(edges):  # an image smaller than a patch
        return
    sides = range(1, max(edges, default=0) + 1)
    for side in sides:
        if all(edge % side == 0 for edge in edges):
            yield side, views
    for side in sides:
        yield side, views
        yield side, [_whole_cells(view, side) for view in views]


def _whole_cells(view: View, side: int) -> View:
    """A view without the patches at its end that fill no cell of side x side."""
    rows = view.rows // side * side
    columns = view.columns // side * side
    kept = np.array([0, 0, columns / view.columns, rows / view.rows])
    return View(view.image, within(view.box, kept), rows, columns)


def evenly_divided(views: Sequence[View]) -> Iterator[PatchGrid]:
    """The views in cells of s x s patches, for each s that divides all of them; 1 is the first."""
    edges = [edge for view in views for edge in (view.rows, view.columns)]
    tiles = tile_numbers(views)
    for side in range(1, min(edges, default=0) + 1):
        if all(edge % side == 0 for edge in edges):
            grids = [cells_of(view, tile, side) for view, tile in zip(views, tiles, strict=True)]
            yield PatchGrid.join(grids)


def cells_of(view: View, tile: int, side: int) -> PatchGrid:
    """The cells of side x side patches of a view; those at its end may be smaller."""
    cell_rows = -(-view.rows // side)
    cell_columns = -(-view.columns // side)
    row, col = (axis.ravel() for axis in np.indices((cell_rows, cell_columns)))
    left = col * side / view.columns
    top = row * side / view.rows
    right = np.minimum((col + 1) * side, view.columns) / view.columns
    bottom = np.minimum((row + 1) * side, view.rows) / view.rows
    box = within(view.box, np.stack([left, top, right, bottom], axis=-1))
    image = np.full_like(row, view.image)
    return PatchGrid(image, np.full_like(row, tile), row, col, box)


def tile_numbers(views: Sequence[View]) -> list[int]:
    """The number of each view among those of its image: the one that shows most of it is the whole
    image, 0, wherever it comes; the others are tiles, from 1 on.
    """
    areas = [float(np.prod(view.box[2:] - view.box[:2])) for view in views]
    numbers = []
    for index, view in enumerate(views):
        same_image = [i for i, other in enumerate(views) if other.image == view.image]
        whole = max(same_image, key=lambda i: areas[i])
        tiles = [i for i in same_image if i != whole]
        numbers.append([whole, *tiles].index(index))
    return numbers


def nowhere(image: int, count: int) -> PatchGrid:
    """Tokens of an image that are not patches."""
    none = np.full(count, -1)
    return PatchGrid(np.full(count, image), none, none, none, np.full((count, 4), np.nan))
