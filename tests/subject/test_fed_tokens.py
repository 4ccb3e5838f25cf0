"""Tokens that several tensors of pixels make: one of the whole image, another of its tiles."""

from functools import partial

import numpy as np
import pytest
import transformers
from PIL import Image

import probe
from tests.families.checks import QUESTION
from tests.families.document_models import DOCUMENT_FAMILIES
from tests.families.further_models import FURTHER_FAMILIES
from tests.families.picture_models import PICTURE_FAMILIES
from tests.families.processors import planes

SIZE = (96, 64)
ROWS, COLUMNS = 2, 3  # of tiles


def tiles_of(images):
    for image in images:
        width, height = image.width / COLUMNS, image.height / ROWS
        for row, column in np.ndindex(ROWS, COLUMNS):
            left, top = column * width, row * height
            yield image.crop(tuple(map(round, (left, top, left + width, top + height))))


def with_tiles(images, whole, tile, **stated):
    views = planes(whole)(images)
    tiles = planes(tile, name="pixel_values_local")(list(tiles_of(images)))
    return {**views, **tiles, **stated, "num_local_patches": [ROWS * COLUMNS] * len(images)}


def step():
    """A token for each tile between marks, then those of the whole image."""
    model, processor = FURTHER_FAMILIES["step3p7"]()
    processor.pixels = partial(with_tiles, whole=64, tile=32)
    tile = "<start><image><end>"
    row = tile * COLUMNS + "<break>"
    processor.expand = lambda size: row * ROWS + "<start>" + "<image>" * 4 + "<end>"
    return model, processor


def unlimited():
    """Rows over all tiles with a mark behind each, the whole image's, a separator."""
    model, processor = DOCUMENT_FAMILIES["unlimited_ocr"]()

    def pixels(images):
        return with_tiles(images, 64, 64, patches_grid=[[COLUMNS, ROWS]] * len(images))

    processor.pixels = pixels
    tiles = 2 * ROWS * (2 * COLUMNS + 1)
    processor.expand = lambda size: "<image>" * (tiles + 2 * 3 + 1)
    return model, processor


def fractions(rows, columns):
    row, column = (axis.ravel() for axis in np.indices((rows, columns)))
    edges = np.stack([column, row, column + 1, row + 1], axis=1)
    return edges / [columns, rows, columns, rows]


def with_ends(boxes, columns):
    """A token without a place behind each row."""
    rows = boxes.reshape(-1, columns, 4)
    end = np.full((len(rows), 1, 4), np.nan)
    return np.concatenate([rows, end], axis=1).reshape(-1, 4)


EXPECTED = {
    "step": [fractions(ROWS, COLUMNS), fractions(2, 2)],
    "unlimited": [
        with_ends(fractions(2 * ROWS, 2 * COLUMNS), 2 * COLUMNS),
        with_ends(fractions(2, 2), 2),
        np.full((1, 4), np.nan),
    ],
}


@pytest.mark.parametrize(("name", "make"), [("step", step), ("unlimited", unlimited)])
def test_tokens_of_tiles_and_of_the_whole_image_have_their_places(name, make):
    if name == "unlimited" and not hasattr(transformers, "UnlimitedOcrForConditionalGeneration"):
        pytest.skip("this transformers does not have it")
    subject = probe.load(*make())
    expected = np.concatenate(EXPECTED[name])
    (alone,) = subject.encode(Image.new("RGB", SIZE), QUESTION).grid
    np.testing.assert_allclose(alone.box, expected, atol=0.02)
    two = [Image.new("RGB", SIZE), Image.new("RGB", (60, 100))]
    (both,) = subject.encode(two, QUESTION).grid
    np.testing.assert_allclose(both.box, np.tile(expected, (2, 1)), atol=0.04)
    assert both.image.tolist() == [0] * len(expected) + [1] * len(expected)


def test_tensors_that_make_the_same_tokens_are_one_view():
    subject = probe.load(*PICTURE_FAMILIES["deepseek_vl_hybrid"]())
    (grid,) = subject.encode(Image.new("RGB", SIZE), QUESTION).grid
    np.testing.assert_allclose(grid.box, fractions(4, 4), atol=0.02)


def test_patches_of_tokens_that_a_processor_states():
    """Molmo 2: numbers of patches for each token, here of 2 x 2 and of a cell with one patch."""
    if not hasattr(transformers, "Molmo2ForConditionalGeneration"):
        pytest.skip("this transformers does not have it")
    model, processor = FURTHER_FAMILIES["molmo2"]()
    made = processor.pixels

    def pixels(images):
        tensors = made(images)
        tensors["image_token_pooling"][-1, 1:] = -1
        return tensors

    processor.pixels = pixels
    (grid,) = probe.load(model, processor=processor).encode(Image.new("RGB", SIZE), QUESTION).grid
    expected = fractions(2, 2)
    expected[-1] = [0.5, 0.5, 0.75, 0.75]
    np.testing.assert_allclose(grid.box, expected, atol=0.02)
