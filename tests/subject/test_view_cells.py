"""How tokens divide views: in cells of s x s patches, with what is left over or without it."""

import numpy as np
import pytest

from probe.subject.view_cells import divided
from probe.subject.views_from_places import View

WHOLE = np.array([0.0, 0, 1, 1])


@pytest.mark.parametrize(
    ("rows", "columns", "tokens", "last_box"),
    [
        (8, 12, 24, [10 / 12, 6 / 8, 1, 1]),
        (8, 13, 28, [12 / 13, 6 / 8, 1, 1]),  # the last column is a cell of its own
        (8, 13, 24, [10 / 13, 6 / 8, 12 / 13, 1]),  # or no token's
        (8, 8, 4, [4 / 8, 4 / 8, 1, 1]),  # cells of 4 x 4, and not of 3 x 3 with some left over
        (5, 5, 4, [2 / 5, 2 / 5, 4 / 5, 4 / 5]),
    ],
)
def test_patches_that_fill_no_cell(rows, columns, tokens, last_box):
    grid = divided([View(0, WHOLE, rows, columns)], tokens)
    assert grid is not None and len(grid) == tokens
    np.testing.assert_allclose(grid.box[-1], last_box)


def test_a_number_that_no_cells_have():
    assert divided([View(0, WHOLE, 8, 13)], 25) is None
    assert divided([View(0, WHOLE, 15, 0)], 15) is None  # an image smaller than a patch
