"""Several views of an image that a processor returns as patches."""

import numpy as np
import pytest
import torch
from PIL import Image

from probe.subject.measured_views import measured_views

PATCH = 8
SIZE = (90, 60)
TILES = [(0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1 / 3, 1.0), (1 / 3, 0.0, 2 / 3, 1.0), (2 / 3, 0, 1, 1)]
SHAPES = [(3, 5), (4, 2), (4, 2), (4, 1)]  # rows and columns of patches


def patches_of(image, box, shape):
    """(patch, colour * side * side), row by row."""
    rows, columns = shape
    edges = np.array(box) * np.tile(image.size, 2)
    view = image.crop(tuple(edges.round().astype(int)))
    view = view.resize((columns * PATCH, rows * PATCH), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(view)).permute(2, 0, 1) / 255
    split = pixels.view(3, rows, PATCH, columns, PATCH).permute(1, 3, 0, 2, 4)
    return split.reshape(rows * columns, -1)


def views_of(images, shapes=SHAPES):
    return [
        patches_of(image, box, shape)
        for image in images
        for box, shape in zip(TILES, shapes, strict=True)
    ]


def in_a_strip(images):
    """MiniCPM-V's: colour, side, side * patches; rows and columns of each view beside it."""
    flat = torch.cat(views_of(images)).view(-1, 3, PATCH, PATCH)
    strip = flat.permute(1, 2, 0, 3).reshape(1, 3, PATCH, -1)
    return {"pixel_values": strip, "target_sizes": torch.tensor(SHAPES * len(images))}


def filled_up(images):
    """LFM2-VL's: a view a row, filled up."""
    views = views_of(images)
    most = max(map(len, views))
    filled = torch.stack([torch.nn.functional.pad(v, (0, 0, 0, most - len(v))) for v in views])
    return {"pixel_values": filled, "spatial_shapes": torch.tensor(SHAPES * len(images))}


def equal_views(images):
    """Molmo 2's: a view a row, and nothing says its rows and columns."""
    return {"pixel_values": torch.stack(views_of(images, [(3, 3)] * len(TILES)))}


@pytest.mark.parametrize("process", [in_a_strip, filled_up, equal_views])
@pytest.mark.parametrize("size", [SIZE, (900, 60), (30, 45)])
def test_each_view_shows_its_part(process, size):
    views = measured_views(process, [size, SIZE], PATCH)
    assert [view.image for view in views] == [0] * len(TILES) + [1] * len(TILES)
    shapes = [(3, 3)] * len(TILES) if process is equal_views else SHAPES
    assert [(view.rows, view.columns) for view in views] == shapes * 2
    for view, box in zip(views, TILES * 2, strict=True):
        np.testing.assert_allclose(view.box, box, atol=0.015)
