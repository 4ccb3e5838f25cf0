"""Families of newer releases, checked as all others are. Most run in the wide suite only."""

import pytest
import transformers

import probe
from tests.families.checks import CHECKS, Case, results
from tests.families.patch_models import PATCH_FAMILIES
from tests.families.table import PAGE, row

ALL = {**dict.fromkeys(CHECKS, "yes"), "compressor, cross": "no: it has none"}
ALONE = {"sweep": "yes, each case alone"}
STATE = "no: layer 0 (from 0) without: words read the image through its state"
HYBRID = {
    "drop: mask": STATE,
    "knockout": STATE,
    "FastV": "no: layers [0] (from 0), some without",
    **ALONE,
}
INDEXED = "no: DynamicIndexedLayer in layer 1"
EXPECTED = {  # what differs from "yes" everywhere
    "cohere_compass": ALONE,
    "cosmos3_omni": ALONE,
    "ernie4_5_vl_moe": ALONE,  # the experts of a token depend on what stands there
    "glm5_next": {
        **HYBRID,
        **dict.fromkeys(("drop: remove", "drop while decoding", "sweep", "FastV"), INDEXED),
        "LLM measured": "yes, but layer 1, 3",
        "remove = mask_frozen": INDEXED,
    },
    "lfm3_vl": {**HYBRID, "LLM measured": "yes, but layer 1, 4"},
    "muse_glimmer": ALONE,
    "muse_spark": ALONE,
    "qwen3_omni_moe_thinker": ALONE,
    "qwen3_5_moe": {**HYBRID, "LLM measured": "yes, but layer 1, 3"},
    "qwen3_vl_moe": ALONE,
}
# One of each kind: arguments for each token beside the hidden states; values of another width than
# keys, and square patches; an indexer
IN_DEFAULT = ("ernie4_5_vl_moe", "kimi_k25", "glm5_next")
MARKED = [
    name if name in IN_DEFAULT else pytest.param(name, marks=pytest.mark.wide)
    for name in PATCH_FAMILIES
]


@pytest.mark.parametrize("name", MARKED)
def test_a_newer_family_is_exact_unchanged_and_blind(name):
    make = PATCH_FAMILIES[name]
    if not hasattr(transformers, make.args[0]):
        pytest.skip(f"this transformers has no {make.args[0]}")
    model, processor = make()
    found = results(Case(probe.load(model, processor=processor)))
    assert found == {**ALL, **EXPECTED.get(name, {})}
    page = PAGE.read_text()  # python -m tests.families.table > docs/families.md
    if f"transformers {transformers.__version__})" in page:
        assert row(name, model, found) in page.splitlines()
