"""Padding among the patches that a processor returns one by one."""

import numpy as np
import pytest
import torch
from PIL import Image

import probe
from probe.measures.attention.reference import largest_difference
from probe.subject.measured_views import measured_views
from tests.families.checks import EXACT, QUESTION, picture
from tests.families.patch_models import PATCH_FAMILIES
from tests.families.picture_models import PICTURE_FAMILIES

PATCH = 8


def filled(images, by_cells=False):
    """Images at their own size, filled up with 0 to cells of 2 x 2 patches."""
    patches, grid = [], []
    for image in images:
        columns, rows = (2 * -(-edge // (2 * PATCH)) for edge in image.size)
        canvas = torch.zeros(3, rows * PATCH, columns * PATCH)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
        canvas[:, : image.height, : image.width] = pixels
        split = canvas.view(3, rows // 2, 2, PATCH, columns // 2, 2, PATCH)
        order = (1, 4, 2, 5, 0, 3, 6) if by_cells else (1, 2, 4, 5, 0, 3, 6)
        patches.append(split.permute(*order).reshape(rows * columns, 3, PATCH, PATCH))
        grid.append([1, rows, columns])
    return {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grid)}


@pytest.mark.parametrize("by_cells", [False, True])
def test_patches_that_show_nothing_have_their_place(by_cells):
    sizes = [(100, 60), (40, 90)]
    views = measured_views(lambda images: filled(images, by_cells), sizes, PATCH)
    shapes = [(8, 14), (12, 6)]
    assert [(view.rows, view.columns) for view in views] == shapes
    for view, size, (rows, columns) in zip(views, sizes, shapes, strict=True):
        expected = [0, 0, columns * PATCH / size[0], rows * PATCH / size[1]]
        np.testing.assert_allclose(view.box, expected, atol=0.03)
        row, column = np.divmod(view.order, columns)
        cell = row // 2 * (columns // 2) + column // 2
        assert (np.diff(cell) >= 0).all() == by_cells
    tokens = {tuple(each) for each in views[0].order[:4, None].tolist()}
    assert tokens == ({(0,), (1,), (14,), (15,)} if by_cells else {(0,), (1,), (2,), (3,)})


def test_an_encoder_that_reads_padding_is_measured():
    """Kimi K2.5's processor fills images up, and its encoder reads what it filled them with."""
    model, processor = PATCH_FAMILIES["kimi_k25"]()
    processor.pixels = filled
    processor.expand = lambda size: "<image>" * (-(-size[0] // 16) * -(-size[1] // 16))
    subject = probe.load(model, processor=processor)
    inputs = subject.encode(picture(0), QUESTION)
    (grid,) = inputs.grid
    width = picture(0).size[0]
    assert grid.box[:, 2].max() * width == pytest.approx(16 * -(-width // 16), abs=1)
    assert largest_difference(subject, inputs, "vision") < EXACT


def test_an_encoder_of_views_of_unequal_size_is_measured():
    """LFM2-VL: tiles come before the whole image, which has more patches."""
    model, processor = PICTURE_FAMILIES["lfm2_vl"]()
    made, expand = processor.pixels, processor.expand

    def pixels(images):
        (image,) = images
        width, height = image.size
        halves = [
            image.crop((0, 0, width // 2, height // 2)),
            image.crop((width // 2, height // 2, width, height)),
        ]
        tiles = [half.resize((32, 32), Image.Resampling.BICUBIC) for half in halves]
        return made([*tiles, image])

    processor.pixels = pixels
    processor.expand = lambda size: "<image>" * 8 + expand(size)
    subject = probe.load(model, processor=processor)
    inputs = subject.encode(picture(0), QUESTION)
    (grid,) = inputs.grid
    assert not np.isnan(grid.box).any() and set(grid.tile[:8]) == {1, 2}
    assert set(grid.tile[8:]) == {0}
    np.testing.assert_allclose(
        grid.box[:8][[0, 7]], [[0, 0, 0.25, 0.25], [0.75, 0.75, 1, 1]], atol=0.03
    )
    assert largest_difference(subject, inputs, "vision") < EXACT
