"""The view of an image whose patches a processor returns with padding among them (Kimi K2.5,
GLM-5-Next fill images up to whole cells): patches that show nothing have their place too.

    padded_views(x, y, shapes=[(8, 14)])     # one number a patch, NaN where it shows nothing
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from probe.subject.views_from_places import Shape, View, spaced

Middles = Float[np.ndarray, " patch"]  # NaN of padding


def padded_views(x: Middles, y: Middles, shapes: Sequence[Shape]) -> list[View] | None:
    """The view of each image, from the places that the middles of its patches show. `shapes`: rows
    and columns of each, padding included. None where patches come in no known order.
    """
    found = []
    start = 0
    for image, (rows, columns) in enumerate(shapes):
        own = slice(start, start + rows * columns)
        start = own.stop
        view = _padded_view(x[own], y[own], image, rows, columns)
        if view is None:
            return None
        found.append(view)
    return found


def _padded_view(x: Middles, y: Middles, image: int, rows: int, columns: int) -> View | None:
    real = np.flatnonzero(~np.isnan(x))
    across, down = spaced(x[real]), spaced(y[real])
    if across is None or down is None or min(len(across), len(down)) < 2:
        return None
    column = np.abs(x[real, None] - across).argmin(1)
    row = np.abs(y[real, None] - down).argmin(1)
    for order in _orders(rows, columns):
        if np.array_equal(order[real], row * columns + column):
            left, right = _edges(across, columns)
            top, bottom = _edges(down, rows)
            return View(image, np.array([left, top, right, bottom]), rows, columns, order)
    return None


def _edges(middles: Float[np.ndarray, " place"], count: int) -> tuple[float, float]:
    """Where the first of `count` patches begins and the last one ends. The last ones that show
    something may do so in part.
    """
    inner = np.arange(len(middles) - 1 if len(middles) > 2 else len(middles))
    slope, offset = np.polyfit(inner + 0.5, middles[inner], 1)
    return float(offset), float(offset + slope * count)


def _orders(rows: int, columns: int) -> Iterator[Int[np.ndarray, " patch"]]:
    """The patch, counted row by row, that comes when: row by row, or by cells of s x s patches."""
    by_row = np.arange(rows * columns).reshape(rows, columns)
    for side in range(1, min(rows, columns) + 1):
        if rows % side == 0 and columns % side == 0:
            cells = by_row.reshape(rows // side, side, columns // side, side)
            yield cells.transpose(0, 2, 1, 3).ravel()
