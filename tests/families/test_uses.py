"""Every family through the verbs: lens, attribution, flow maps, cost, figures, command line. What
a family can't do is refused in one line, by its reason.
"""

import pytest
import transformers
from packaging.version import Version

import probe
from tests.families.checks import Case
from tests.families.table import ASKED, PAGE, USED_FAMILIES, row
from tests.families.uses import USES, Use, uses

BY_PROCESSOR = {"cost": "yes, by its processor"}
WHOLE = {
    "lens": "yes, without a place in the image",
    "attribution: tokens": "no: none in 'cell row 1 column 1' (4 of 4)",
    "flow maps": "no: none: each is made of the whole image, or lies outside the regions",
    **BY_PROCESSOR,
}
STATE = "no: layer 0 (from 0) without: words read the image through its state"
HYBRID = {
    **BY_PROCESSOR,
    "attribution: tokens": STATE,
    "flow maps": "no: layer 1, 3 (from 1) without",
    "`probe drop`": "yes, --mode remove",
}
ALL = dict.fromkeys(USES, "yes")
# What differs from "yes" everywhere
EXPECTED = {
    **dict.fromkeys(
        [
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen3_vl",
            "glm4v",
            "video_llama_3",
            "gemma4",
            "idefics3",
            "smolvlm",
            "mistral3",
            "fuyu",
        ],
        BY_PROCESSOR,
    ),
    **dict.fromkeys(["idefics2", "aria", "blip2", "instructblip", "mllama", "idefics"], WHOLE),
    **dict.fromkeys(["hunyuan_vl", "molmo2"], BY_PROCESSOR),
    **dict.fromkeys(["qwen3_5", "minicpmv4_6", "lfm2_vl"], HYBRID),
    "llava_gemma3n": {"lens": "no: (2, 1, 27, 32), several streams side by side"},
}


@pytest.mark.wide
@pytest.mark.parametrize("name", USED_FAMILIES)
def test_a_family_can_be_asked_what_its_page_says(name, tmp_path):
    if name == "llama4" and transformers.__version__.startswith(("5.19.0", "5.24.0")):
        pytest.skip("this transformers: Llama 4's own forward raises AttributeError")
    if name in ASKED and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("this transformers does not have all of them")
    model, processor = USED_FAMILIES[name]()
    found = uses(Use(name, Case(probe.load(model, processor=processor)), tmp_path))
    assert found == {**ALL, **EXPECTED.get(name, {})}
    page = PAGE.read_text()  # python -m tests.families.table > docs/families.md
    if f"transformers {transformers.__version__})" in page:
        assert row(name, model, found) in page.splitlines()
