"""Families whose kernels cap scores, or have learned sinks or biases, checked as all others are."""

import pytest
import transformers

import probe
from tests.families.checks import CHECKS, Case, results
from tests.families.score_models import SCORE_FAMILIES
from tests.families.table import PAGE, row

EXPECTED = {
    **dict.fromkeys(CHECKS, "yes"),
    "compressor, cross": "no: it has none",
    "sweep": "yes, each case alone",  # what cases share is computed as a plain softmax
}


@pytest.mark.wide
@pytest.mark.parametrize("name", SCORE_FAMILIES)
def test_a_family_is_exact_unchanged_and_blind(name):
    model, processor = SCORE_FAMILIES[name]()
    found = results(Case(probe.load(model, processor=processor)))
    assert found == EXPECTED
    page = PAGE.read_text()  # python -m tests.families.table > docs/families.md
    if f"transformers {transformers.__version__})" in page:
        assert row(name, model, found) in page.splitlines()
