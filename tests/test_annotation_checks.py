"""Annotations of the package are checks in tests: of shapes, of other types, and of dataclasses."""

import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from probe.data.patch_grid import PatchGrid
from probe.errors import shown
from probe.reducers.cosine import Cosines


def test_a_wrong_shape_is_an_error():
    with pytest.raises(TypeCheckError, match="features"):
        Cosines(torch.zeros(2, 3, 4))


def test_a_wrong_type_is_an_error():
    with pytest.raises(BeartypeCallHintViolation, match="longest"):
        shown("a value", longest="60")  # type: ignore[arg-type]


def test_a_wrong_field_is_an_error():
    one = np.zeros(1, int)
    two = np.zeros(2, int)
    box = np.zeros((1, 4))
    assert len(PatchGrid(one, one, one, one, box)) == 1
    with pytest.raises(TypeCheckError, match="col"):
        PatchGrid(one, one, one, two, box)


def test_a_test_can_do_without(unchecked):
    assert shown("a value", longest=60.0) == "'a value'"  # type: ignore[arg-type]
