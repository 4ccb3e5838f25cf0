"""Another image's vision tokens in every layer: the model answers as it does about that image,
also where features are added to vision tokens between layers (DeepStack), and none of the shown
image is left.
"""

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

import probe
from probe.errors import ProbeError
from probe.hooks.model_structure import stacks
from probe.subject.inputs import collate
from tests.families.checks import QUESTION, RESPONSE, Case, picture
from tests.families.models import FAMILIES
from tests.families.table import ALL_FAMILIES

IN_DEFAULT = ("qwen3_vl", "paligemma", "gemma4", "video_llava", "mllama")
NOT_RUN = ("llama4",)  # this transformers: its own forward raises AttributeError
WIDE = [name for name in ALL_FAMILIES if name not in (*IN_DEFAULT, *NOT_RUN)]
ALL = [*IN_DEFAULT, *(pytest.param(name, marks=pytest.mark.wide) for name in WIDE)]
STATE = {  # why words do not read the image by keys and values alone
    **dict.fromkeys(
        [
            *("qwen3_5", "qwen3_5_moe", "qwen4_exp", "glm5_next", "lfm2_vl", "lfm3_vl"),
            *("minicpmv4_6", "minicpmv4_7", "minicpm_ocr", "nemotron_h_omni"),
            "llava_recurrent_gemma",
        ],
        "through its state",
    ),
    **dict.fromkeys(("inkling", "inkling2", "inkling2_loop", "llava_falcon_h1"), "a convolution"),
    "chameleon": "which makes them of ids and pixels itself",
}


@pytest.mark.parametrize("name", ALL)
def test_all_layers_that_read_another_image_answer_about_that_one(name):
    if name not in FAMILIES and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("this transformers does not have all of them")
    case = Case(probe.load(*ALL_FAMILIES[name]()))
    shown, other = case.answered
    if name in STATE:
        with (
            pytest.raises(ProbeError, match=STATE[name]),
            probe.swap_vision(case.subject, case.layers, other),
        ):
            case.logits(shown)
        return
    with probe.swap_vision(case.subject, case.layers, other):
        swapped = case.logits(shown)
    torch.testing.assert_close(swapped, case.logits(other), atol=2e-5, rtol=0)
    assert not torch.allclose(swapped, case.logits(shown), atol=1e-3)


def test_features_between_layers_of_a_batch_are_those_of_each_rows_donor():
    case = Case(probe.load(*FAMILIES["qwen3_vl"]()))
    first, second = case.prompts
    without = case.subject.encode(None, QUESTION)
    batch, donors = (collate(rows) for rows in ([first, without, second], [second, without, first]))
    with torch.no_grad(), probe.swap_vision(case.subject, case.layers, donors):
        swapped = case.subject.model(**batch).logits[:, -1]
    with torch.no_grad():
        expected = case.subject.model(**donors).logits[:, -1]
    torch.testing.assert_close(swapped, expected, atol=1e-4, rtol=0)
    assert len(stacks(case.subject.model)["llm"].layers) == len(case.layers)


@pytest.mark.parametrize("baseline", ["rows", "zero"])
def test_an_ablated_image_has_no_features_between_layers_either(baseline):
    """With "rows" their mean stands in their place, which is of the image too."""
    subject = probe.load(*FAMILIES["qwen3_vl"]())
    region = np.ones((picture(0).height, picture(0).width), bool)
    options = {"over": region, "words": False, "attention": False, "progress": False}
    without = []
    for seed in (0, 1):
        found = probe.attribute(
            subject, picture(seed), QUESTION, [*RESPONSE], baseline=baseline, **options
        )
        assert abs(float(found["attribution"][0])) > 1e-3
        without.append(float(found["logprob_without"]))
    if baseline == "zero":
        assert without[0] == pytest.approx(without[1], abs=1e-5)
    else:
        assert without[0] != pytest.approx(without[1], abs=1e-3)
