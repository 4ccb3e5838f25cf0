"""Questions about the same images share what the image processor makes of them."""

import models
import numpy as np
import pytest
import torch

from probe.reducers import VisionZip
from probe.subject.loading import load
from probe.subject.processed_images import ProcessedImages

QUESTIONS = ("what is this ?", "is it red ?")


def same(row, other):
    assert row.keys() == other.keys()
    for name, tensor in row.items():
        assert torch.equal(tensor, other[name]), name
    np.testing.assert_array_equal(row.grid[0].box, other.grid[0].box)
    assert (row.types.ids == other.types.ids).all()


def counted(function, calls):
    def count(*args, **options):
        calls.append(function)
        return function(*args, **options)

    return count


@pytest.mark.parametrize("factory", [models.llava15, models.llava_next_vicuna, models.llava_mini])
@pytest.mark.parametrize("images", [1, 2])
def test_rows_are_those_of_each_question_alone(factory, images):
    subject = load(*factory())
    pictures = [models.picture(seed, width=40 + 20 * seed) for seed in range(images)]
    known = ProcessedImages()
    for question in QUESTIONS:
        row = subject.encode(pictures, question, known=known)
        same(row, subject.encode(pictures, question))
    others = [models.picture(9)]
    same(subject.encode(others, QUESTIONS[0], known=known), subject.encode(others, QUESTIONS[0]))


def test_the_image_processor_runs_once(monkeypatch):
    subject, calls = load(*models.llava_next_vicuna()), []
    own = type(subject.processor.image_processor)
    monkeypatch.setattr(own, "__call__", counted(own.__call__, calls))
    known, picture = ProcessedImages(), models.picture()
    rows = [subject.encode(picture, question, known=known) for question in QUESTIONS]
    assert len(calls) == 1
    assert rows[0]["pixel_values"] is rows[1]["pixel_values"]
    subject.encode(picture, QUESTIONS[0])
    assert len(calls) == 2


def test_a_reducer_of_the_encoder_chooses_once_and_is_forgotten_after_its_block():
    subject, picture, known = load(*models.llava15()), models.picture(), ProcessedImages()
    with VisionZip(2, 1)(subject):
        for question in QUESTIONS:
            row = subject.encode(picture, question, known=known)
            same(row, subject.encode(picture, question))
            assert row.types.vision.sum() == 3
    same(subject.encode(picture, "?", known=known), subject.encode(picture, "?"))
