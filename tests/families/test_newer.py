"""Families of newer releases, checked as all others are. Most run in the wide suite only."""

import pytest
import transformers
from packaging.version import Version

import probe
from tests.families.checks import CHECKS, Case, results
from tests.families.table import NEWER, PAGE, row

if Version(transformers.__version__) < Version("5.24"):
    pytest.skip("this transformers does not have all of them", allow_module_level=True)

ALL = {**dict.fromkeys(CHECKS, "yes"), "compressor, cross": "no: it has none"}
ALONE = {"sweep": "yes, each case alone"}
STATE = "no: layer 0 (from 0) without: words read the image through its state"
HYBRID = {
    "drop: mask": STATE,
    "knockout": STATE,
    "FastV": "no: layers [0] (from 0), some without",
    **ALONE,
}
FIRST = "no: DynamicIndexedLayer in layer 0"
INDEXED = "no: DynamicIndexedLayer in layer 1"
NOWHERE = "no: every token has looked at the whole image"
CONVOLVES = "no: layer 0 (from 0), where a convolution reads those before them too"
HYBRID_CACHE = "no: LinearAttentionAndSlidingWindowAttentionLayer in layer 0"
BOTH_CACHES = "no: LinearAttentionAndFullAttentionLayer in layer 0"
SINKS = {
    "encoder measured": "no: sequences of 97 positions for 24 patches",  # the tokens are merged
    **dict.fromkeys(("drop: mask", "knockout"), CONVOLVES),
    **dict.fromkeys(("drop: remove", "drop while decoding", "remove = mask_frozen"), HYBRID_CACHE),
    "sweep": HYBRID_CACHE,
    "FastV": "no: LinearAttentionAndFullAttentionLayer in layer 1",
}
MIDWAY = {  # patches merge in the middle of the encoder
    **HYBRID,
    "LLM measured": "yes, but layer 1, 3",
    "encoder measured": "yes, but layer 2",
}
AGAIN = "no: another pass through the layer of"
REFERENCE = "no: UnlimitedOcrDynamicReferenceSlidingWindowLayer in layer"
STREAMS = "no: several streams of them side by side"
BORROWS = "no: layer 2 (from 0), which reads those of an earlier layer"
EXPECTED = {  # what differs from "yes" everywhere
    "cohere_compass": ALONE,
    "cosmos3_omni": ALONE,
    "ernie4_5_vl_moe": ALONE,  # the experts of a token depend on what stands there
    "chameleon": {"encoder measured": "no: it has none", **ALONE},
    "gemma4_unified": {"encoder measured": "no: it has none", **ALONE},
    "glm5_next": {
        **HYBRID,
        **dict.fromkeys(("drop: remove", "drop while decoding", "sweep", "FastV"), INDEXED),
        "LLM measured": "yes, but layer 1, 3",
        "remove = mask_frozen": INDEXED,
    },
    "granite_docling": ALONE,
    "lfm2_vl": {**HYBRID, "LLM measured": "yes, but layer 1, 3"},
    "lfm3_vl": {
        **HYBRID,
        "LLM measured": "yes, but layer 1, 4",
        "encoder measured": "yes, but layer 1, 3",  # convolutions
    },
    "minicpm_ocr": {**HYBRID, "LLM measured": "yes, but layer 1, 3"},
    "minicpmv4_6": MIDWAY,
    "minicpmv4_7": MIDWAY,
    "mistral_large4": {
        **dict.fromkeys(("drop: remove", "drop while decoding", "remove = mask_frozen"), FIRST),
        "FastV": INDEXED,
        **ALONE,
    },
    "muse_glimmer": ALONE,
    "nemotron_h_omni": {
        **HYBRID,
        "LLM measured": "yes, but layer 1, 2, 4",
    },
    "muse_spark": ALONE,
    "qwen3_omni_moe_thinker": ALONE,
    "qwen3_5_moe": {**HYBRID, "LLM measured": "yes, but layer 1, 3"},
    "qwen3_vl_moe": ALONE,
    "got_ocr2": {"encoder measured": "no: it has none"},  # SAM, with a softmax of its own
    "granite4_vision": {"compressor, cross": "yes: compressor", **ALONE},
    "hy_v4_vl": {
        **dict.fromkeys(("drop: remove", "drop while decoding", "remove = mask_frozen"), FIRST),
        "FastV": INDEXED,
        **ALONE,
    },
    "deepseek_ocr2": {"places": NOWHERE},  # queries behind patches that another encoder merged
    "unlimited_ocr": {
        **dict.fromkeys(
            ("drop: remove", "drop while decoding", "remove = mask_frozen"), f"{REFERENCE} 0"
        ),
        "FastV": f"{REFERENCE} 1",
        **ALONE,
    },
    "qwen4_exp": {
        **HYBRID,
        **dict.fromkeys(("drop: remove", "drop while decoding", "sweep", "FastV"), INDEXED),
        "LLM measured": "yes, but layer 1, 3",
        "remove = mask_frozen": INDEXED,
    },
    "emu3": {"encoder measured": "no: it has none"},
    "apertus1p5": {"encoder measured": "no: it has none"},
    "molmo2": ALONE,
    "dots3_note": {
        **dict.fromkeys(("drop: remove", "drop while decoding", "remove = mask_frozen"), FIRST),
        "FastV": "no: DynamicIndexedLayer in layer 2",
        **ALONE,
    },
    "llava_gemma3n": {
        **dict.fromkeys(("drop: remove", "drop while decoding", "FastV"), STREAMS),
        "remove = mask_frozen": STREAMS,
        **ALONE,
    },
    "llava_falcon_h1": {
        **{name: reason for name, reason in SINKS.items() if name != "encoder measured"},
        **dict.fromkeys(("drop: remove", "drop while decoding", "sweep"), BOTH_CACHES),
        "remove = mask_frozen": BOTH_CACHES,
    },
    "gemma4_small": {
        **dict.fromkeys(("drop: remove", "drop while decoding", "FastV"), BORROWS),
        "remove = mask_frozen": BORROWS,
        **ALONE,
    },
    "llava_recurrent_gemma": {**HYBRID, "LLM measured": "yes, but layer 1, 3"},
    "inkling2": SINKS,
    "inkling2_loop": {
        **SINKS,
        "LLM measured": f"{AGAIN} model.language_model.layers.2.self_attn",
    },
}
# One of each kind: arguments for each token beside the hidden states; values of another width than
# keys, and square patches; an indexer; patches in a strip that merge midway; a head inside the LLM;
# cells that are packed; words of a codebook; several streams; convolutions beside attention
IN_DEFAULT = ("ernie4_5_vl_moe", "kimi_k25", "glm5_next", "minicpmv4_6", "nemotron_h_omni")
IN_DEFAULT = (*IN_DEFAULT, "granite4_vision", "emu3", "llava_gemma3n", "llava_falcon_h1")
MARKED = [
    name if name in IN_DEFAULT else pytest.param(name, marks=pytest.mark.wide) for name in NEWER
]


@pytest.mark.parametrize("name", MARKED)
def test_a_newer_family_is_exact_unchanged_and_blind(name):
    model, processor = NEWER[name]()
    found = results(Case(probe.load(model, processor=processor)))
    assert found == {**ALL, **EXPECTED.get(name, {})}
    page = PAGE.read_text()  # python -m tests.families.table > docs/families.md
    if f"transformers {transformers.__version__})" in page:
        assert row(name, model, found) in page.splitlines()
