"""Attribution where patches are merged before the LLM: regions are what its vision tokens show."""

import numpy as np
import pytest

import probe
from tests.families.checks import QUESTION, picture
from tests.families.models import FAMILIES


@pytest.mark.parametrize("name", ["qwen2_vl", "internvl"])
def test_every_vision_token_is_a_region_that_rows_ablate(name):
    subject = probe.load(*FAMILIES[name]())
    inputs = subject.encode(picture(0), QUESTION)
    found = probe.attribute(
        subject, inputs, response=[14, 16], over="patches", baseline="rows", progress=False
    )
    is_region = np.array([str(name).startswith("patch") for name in found["feature"].values])
    assert is_region.sum() == len(inputs.grid[0]) < len(inputs.encoder_grid[0])
    assert np.abs(found["attribution"].values[is_region]).min() > 0
