"""Families whose kernels cap scores, or have learned sinks or biases, checked as all others are."""

import pytest
import transformers

import probe
from tests.families.checks import CHECKS, Case, results
from tests.families.score_models import BIASED_FAMILIES, SCORE_FAMILIES
from tests.families.table import PAGE, row

ALL = {
    **dict.fromkeys(CHECKS, "yes"),
    "compressor, cross": "no: it has none",
    "sweep": "yes, each case alone",  # what cases share is computed as a plain softmax
}
STATE = "no: layer 0 (from 0), where a convolution reads those before them too"
CACHE = "no: LinearAttentionAndFullAttentionLayer in layer 0"
REMOVED = ("drop: remove", "drop while decoding", "remove = mask_frozen", "sweep")
EXPECTED = {  # what differs
    "inkling": {
        "encoder measured": "no: it has none",
        **dict.fromkeys(("drop: mask", "knockout"), STATE),
        **dict.fromkeys(REMOVED, CACHE),
        "FastV": "no: LinearAttentionAndSlidingWindowAttentionLayer in layer 1",
    },
}


FAMILIES = {**SCORE_FAMILIES, **BIASED_FAMILIES}
MARKED = [
    name if name == "inkling" else pytest.param(name, marks=pytest.mark.wide) for name in FAMILIES
]


@pytest.mark.parametrize("name", MARKED)
def test_a_family_is_exact_unchanged_and_blind(name):
    model, processor = FAMILIES[name]()
    found = results(Case(probe.load(model, processor=processor)))
    assert found == {**ALL, **EXPECTED.get(name, {})}
    page = PAGE.read_text()  # python -m tests.families.table > docs/families.md
    if f"transformers {transformers.__version__})" in page:
        assert row(name, model, found) in page.splitlines()
