"""Views of images of few pixels: tiles, and patches one by one, each of which shows one pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

import probe
from probe.subject.measured_views import measured_views
from tests.families.models import FAMILIES

TILE = 64  # pixels


def tiles_and_thumbnail(rows, columns):
    """InternVL's and Idefics3's: enlarged, cut into tiles row by row, the whole image last."""

    def processed(images):
        canvas = images[0].resize((columns * TILE, rows * TILE), Image.Resampling.BICUBIC)
        corners = [(x * TILE, y * TILE) for y in range(rows) for x in range(columns)]
        tiles = [canvas.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
        views = [*tiles, images[0].resize((TILE, TILE), Image.Resampling.BICUBIC)]
        pixels = [torch.from_numpy(np.array(view)).permute(2, 0, 1) / 255 for view in views]
        return {"pixel_values": torch.stack(pixels)}

    return processed


@pytest.mark.parametrize("size", [(2, 3), (3, 2), (2, 6), (5, 4), (1, 3), (12, 18)])
def test_tiles_of_few_pixels_show_their_own_part(size):
    columns, rows = (2, 3) if size[0] < size[1] else (3, 2)
    *tiles, whole = measured_views(tiles_and_thumbnail(rows, columns), [size], 8)
    middles = [(view.box[:2] + view.box[2:]) / 2 * size for view in tiles]
    expected = [
        ((x + 0.5) / columns * size[0], (y + 0.5) / rows * size[1])
        for y in range(rows)
        for x in range(columns)
    ]
    assert np.abs(np.array(middles) - expected).max() < 0.4  # of a pixel
    np.testing.assert_allclose(whole.box * [*size, *size], [0, 0, *size], atol=0.4)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (4, 3), (1, 90)])
@pytest.mark.parametrize("family", ["gemma4", "qwen2_vl"])
def test_patches_that_come_one_by_one_have_places_in_an_image_of_few_pixels(family, size):
    """Whether the processor states rows and columns (Qwen-VL) or not."""
    subject = probe.load(*FAMILIES[family]())
    inputs = subject.encode(Image.new("RGB", size), "what is red ?")
    (grid,), (patches,) = inputs.grid, inputs.encoder_grid
    for places in (grid, patches):
        counts = places.row.max() + 1, places.col.max() + 1
        assert np.prod(counts) == len(places)
        left = places.col / counts[1]
        bottom = (places.row + 1) / counts[0]
        assert np.abs(places.box[:, 0] - left).max() * size[0] < 0.15  # of a pixel
        assert np.abs(places.box[:, 3] - bottom).max() * size[1] < 0.15


@pytest.mark.parametrize("count", [1, 254, 255, 600])
def test_every_one_of_many_images_has_its_own_views(count):
    """A grey of 8 bits has 254 levels beside black and white: of more images it is no number."""

    def processed(images):
        shown = [np.array(image.resize((16, 16))) for image in [*images[1:], images[0]]]
        return {"pixel_values": torch.tensor(np.array(shown)).permute(0, 3, 1, 2) / 255 - 0.5}

    views = measured_views(processed, [(20, 10)] * count, 8)
    assert [view.image for view in views] == [*range(1, count), 0]
    assert all(np.allclose(view.box, [0, 0, 1, 1], atol=0.02) for view in views)
