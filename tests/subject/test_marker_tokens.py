"""Tokens of an image that show nothing of it are found by asking the model, and the rows between
them have places.
"""

import numpy as np
import pytest
import transformers

import probe
from probe.data.image_views import within
from probe.measures.verify import state
from tests.families.checks import QUESTION, picture
from tests.families.document_models import DOCUMENT_FAMILIES
from tests.families.further_models import FURTHER_FAMILIES

FAMILIES = {**DOCUMENT_FAMILIES, **FURTHER_FAMILIES}
WHOLE = np.array([0.0, 0, 1, 1])
# Rows and columns of a picture of 97 x 61, and the tokens before and behind its rows
MARKED = {
    "hunyuan_vl": (4, 6, 1, 1),
    "hy_v4_vl": (4, 6, 0, 0),
    "unlimited_ocr": (2, 2, 0, 1),
    "emu3": (4, 6, 0, 0),
}
NEWEST = {  # what transformers 5.19 does not have
    "hy_v4_vl": "HYV4VLForConditionalGeneration",
    "unlimited_ocr": "UnlimitedOcrForConditionalGeneration",
}


def expected_boxes(rows, columns, before, after):
    nowhere = np.full((1, 4), np.nan)
    boxes = [nowhere] * before
    for row in range(rows):
        left = np.arange(columns)
        top = np.full(columns, row)
        cells = np.stack([left, top, left + 1, top + 1], -1) / [columns, rows, columns, rows]
        boxes += [within(WHOLE, cells), nowhere]
    return np.concatenate([*boxes, *[nowhere] * after])


@pytest.mark.parametrize("name", MARKED)
def test_rows_between_markers_have_places_and_markers_none(name):
    if name in NEWEST and not hasattr(transformers, NEWEST[name]):
        pytest.skip("this transformers does not have it")
    subject = probe.load(*FAMILIES[name]())
    subject.model(**subject.encode(None, QUESTION), use_cache=False)  # adds transformers' hooks
    before = state(subject.model)
    grid = subject.encode(picture(0), QUESTION).grid[0]
    np.testing.assert_allclose(grid.box, expected_boxes(*MARKED[name]), atol=0.02)
    assert ((grid.row < 0) == np.isnan(grid.box[:, 0])).all()
    assert state(subject.model) == before


def test_each_of_two_images_has_its_rows():
    subject = probe.load(*FAMILIES["hunyuan_vl"]())
    images = [picture(0), picture(1, (50, 110))]
    together = subject.encode(images, "is it red ?").grid[0]
    for number, image in enumerate(images):
        alone = subject.encode(image, QUESTION).grid[0]
        own = together.at(np.flatnonzero(together.image == number))
        np.testing.assert_allclose(own.box, alone.box, atol=0.01)


def test_a_prompt_that_is_encoded_inside_a_drop_has_the_same_places():
    subject = probe.load(*FAMILIES["hunyuan_vl"]())
    with probe.drop_vision(subject.model, [0]):
        inside = subject.encode(picture(0), QUESTION).grid[0]
        subject.answer(picture(0), QUESTION, max_new_tokens=1)
    again = probe.load(*FAMILIES["hunyuan_vl"]()).encode(picture(0), QUESTION).grid[0]
    np.testing.assert_array_equal(inside.box, again.box)


def test_tokens_of_learned_queries_before_one_separator_have_no_place():
    subject = probe.load(*FAMILIES["deepseek_ocr2"]())
    assert np.isnan(subject.encode(picture(0), QUESTION).grid[0].box).all()
