"""Encoders that read cells of s x s patches, which something before their layers has merged:
DeepSeek-OCR 2's and Unlimited-OCR's read what SAM makes of an image.

Noise in the place of pixels says how many positions of a sequence depend on the image. Where they
are fewer than the patches, by the square of one s for all views, each is a cell of s x s.

    coarser = in_cells(inputs, positions)      # the inputs with these cells as patches, or None
"""

from dataclasses import replace

import numpy as np

from probe.data.patch_grid import PatchGrid
from probe.measures.attention.encoder_sequences import CallPositions
from probe.measures.attention.sequence_rows import assign_rows, view_counts
from probe.subject.inputs import Inputs


def in_cells(inputs: Inputs, positions: CallPositions) -> Inputs | None:
    """The inputs, with cells as the encoder's patches; None where positions and patches do not fit
    in this way. Cells are row by row, as patches are.
    """
    _, call_order = assign_rows(inputs, view_counts(inputs))
    if positions.is_patch is None or len(positions.keys) != len(call_order):
        return None
    ends = np.cumsum(positions.keys)
    counts = {int(part.sum()) for part in np.split(positions.is_patch, ends[:-1])}
    views = [view for grid in inputs.encoder_grid for view in _views(grid)]
    patches = {len(view) for view in views}
    if len(counts) != 1 or len(patches) != 1:
        return None
    (count,), (patches_of_view,) = counts, patches
    side = round((patches_of_view / max(count, 1)) ** 0.5)
    edges = [edge for view in views for edge in (view.row.max() + 1, view.col.max() + 1)]
    if side < 2 or count * side**2 != patches_of_view or any(edge % side for edge in edges):
        return None
    grids = [
        PatchGrid.join([_cells(view, side) for view in _views(grid)])
        for grid in inputs.encoder_grid
    ]
    return inputs.having(dict(inputs), encoder_grid=grids)


def _views(grid: PatchGrid) -> list[PatchGrid]:
    """The patches of each image and tile."""
    places = np.stack([grid.image, grid.tile], axis=1)
    return [grid.at(np.flatnonzero((places == one).all(1))) for one in np.unique(places, axis=0)]


def _cells(view: PatchGrid, side: int) -> PatchGrid:
    """The cells of one view, row by row, each the rectangle around its patches."""
    row, col = view.row // side, view.col // side
    order = np.lexsort((view.col, view.row, col, row))  # patch by patch, cell by cell
    in_cell = order.reshape(-1, side**2)
    boxes = view.box[in_cell]
    around = np.concatenate([boxes[..., :2].min(1), boxes[..., 2:].max(1)], axis=1)
    first = in_cell[:, 0]
    return replace(view.at(first), row=row[first], col=col[first], box=around)
