"""Families that are not LLaVA's: what `cost` counts, why it refuses, and `verify` on models that
decode in their own ways.
"""

import pytest

import probe
from probe.errors import ProbeError
from tests.families.checks import picture
from tests.families.models import FAMILIES

REFUSED = {
    "qwen2_vl": "got Qwen2VLVisionConfig, which names none: it reads images at their own",
    "glm4v": "got Glm4vModel, which also takes image_grid_thw",
    "mistral3": "got Mistral3Model, which also takes image_sizes",
    "instructblip": "got InstructBlipForConditionalGeneration, which also takes qformer_input_ids",
    "fuyu": "got a FuyuConfig, whose LLM reads patches without one",
    "mllama": "got MllamaModel, whose words read the image by cross-attention",
    "blip2": "got Blip2ForConditionalGeneration, which looks at values, where only shapes are",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cost_cannot_count_is_refused_by_its_reason(name):
    model, _ = FAMILIES[name]()
    with pytest.raises(ProbeError) as error:
        probe.cost(model.config)
    assert REFUSED[name] in str(error.value) and "\n" not in str(error.value)


def test_sizes_given_as_two_sides_are_counted():
    model, _ = FAMILIES["internvl"]()
    costs = probe.cost(model.config)
    assert costs["vision_tokens"] == 4 and costs["height"] == 32
    assert (costs["flops"].sel(component=["vision_encoder", "projector", "llm"]) > 0).any()


@pytest.mark.parametrize("name", ["blip2", "idefics"])
def test_verify_decodes_as_the_model_itself_does(name):
    model, processor = FAMILIES[name]()
    report = probe.verify(probe.load(model, processor=processor), picture(0), "what is red ?")
    assert report.passed, [check for check in report.checks if not check.passed]
