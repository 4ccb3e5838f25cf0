"""A mistake is one line, and the shared checks accept exactly what they say."""

import numpy as np
import pytest
import torch

from probe.errors import ProbeError, at_least, not_empty, one_of, shown, whole_numbers


def test_an_error_is_one_line_of_what_is_known():
    error = ProbeError("load", expected="a folder,\nwith weights", got="'x'", fix="pass a folder")
    assert str(error) == "load: expected a folder, with weights, got 'x'; pass a folder"
    assert str(ProbeError("load", got="'x'")) == "load: got 'x'"
    assert str(ProbeError("load", fix="pass a folder")) == "load: pass a folder"


def test_one_of_accepts_what_is_listed():
    one_of("drop", "a mode of", "mask", ("mask", "zero"))
    one_of("drop", "a mode of", "mask", (name for name in ("mask", "zero")))
    with pytest.raises(ProbeError, match=r"^drop: expected a mode of mask, zero, got 'maks'; fix$"):
        one_of("drop", "a mode of", "maks", {"mask": 1, "zero": 2}, fix="fix")
    with pytest.raises(ProbeError, match=r"got \['mask'\]"):
        one_of("drop", "a mode of", ["mask"], ("mask", "zero"))


@pytest.mark.parametrize("value", [1, 7, np.int64(1), np.uint8(1)])
def test_at_least_accepts_whole_numbers(value):
    at_least("cost", "frames", value, 1)


@pytest.mark.parametrize("value", [0, -1, True, 1.0, 1.5, np.nan, "1", None, np.float32(2)])
def test_at_least_refuses_what_is_smaller_or_not_a_whole_number(value):
    with pytest.raises(ProbeError, match=r"^cost: expected frames of 1 or more, got "):
        at_least("cost", "frames", value, 1)


@pytest.mark.parametrize("values", [1, [1], {1}, np.array([1]), torch.tensor([1]), range(1, 2)])
def test_whole_numbers_of_any_kind(values):
    assert whole_numbers("drop", "layers", values) == [1]


@pytest.mark.parametrize(
    "values", [True, [True], np.array([True]), torch.tensor([True]), 1.0, [1.0], "1", None]
)
def test_no_whole_numbers(values):
    with pytest.raises(ProbeError, match=r"^drop: expected layers as whole numbers, got "):
        whole_numbers("drop", "layers", values)


@pytest.mark.parametrize("values", [[], (), {}, np.empty((0, 2))])
def test_not_empty(values):
    not_empty("merge", "record", [1])
    with pytest.raises(ProbeError, match=r"^merge: expected at least one record, got none$"):
        not_empty("merge", "record", values)


def test_shown_is_one_line_of_limited_length():
    assert shown("a\nb") == repr("a\nb")
    assert shown(np.array([[1, 2], [3, 4]])) == "array([[1, 2], [3, 4]])"
    assert len(shown("a" * 100)) == 60
