"""Families that are not LLaVA's: what `cost` counts, why it refuses, and `verify` on models that
decode in their own ways.
"""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

import probe
from probe.errors import ProbeError
from probe.measures.cost.own_prompt import OwnPrompt
from tests.families.checks import picture
from tests.families.document_models import DOCUMENT_FAMILIES
from tests.families.models import FAMILIES
from tests.families.picture_models import PICTURE_FAMILIES

REFUSED = {
    "qwen2_vl": "got Qwen2VLVisionConfig, which names none: it reads images at their own",
    "glm4v": "got Glm4vModel, which also takes image_grid_thw",
    "mistral3": "got Mistral3Model, which also takes image_sizes",
    "instructblip": "got InstructBlipForConditionalGeneration, which also takes qformer_input_ids",
    "fuyu": "got a FuyuConfig, whose LLM reads patches",
    "mllama": "got MllamaModel, whose words read the image by cross-attention",
    "idefics2": "got Idefics2Model, whose get_image_features refuses them",
}
TEXT_TOKENS = 20
has_it = hasattr(transformers, "UnlimitedOcrForConditionalGeneration")
newest = pytest.mark.skipif(not has_it, reason="this transformers does not have it")
OWN = ["qwen2_5_vl", "aria", "blip2", "mllama"]
REPEATED = ["qwen3_5", "gemma4", "idefics2", "fuyu", "idefics"]
OWN += [pytest.param(name, marks=pytest.mark.wide) for name in REPEATED]


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_config_does_not_say_is_refused_by_its_reason(name):
    model, _ = FAMILIES[name]()
    with pytest.raises(ProbeError) as error:
        probe.cost(model.config)
    assert REFUSED[name] in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith("its processor says what an image becomes")


@newest
def test_what_a_cache_of_another_kind_holds_is_counted():
    costs = probe.cost(probe.load(*DOCUMENT_FAMILIES["unlimited_ocr"]()), text_tokens=TEXT_TOKENS)
    keys_and_values = 2 * 4 * 8 * costs["llm_tokens"]  # of 4 heads of 8, in float32
    assert costs["kv_cache"].sum() == 4 * keys_and_values.sum()


@newest
def test_a_decoder_that_makes_no_cache_of_its_own_is_given_one():
    """As `generate` does (Granite Vision)."""
    subject = probe.load(*DOCUMENT_FAMILIES["granite4_vision"]())
    costs = probe.cost(subject, text_tokens=TEXT_TOKENS, resolution=32)
    prompt = OwnPrompt.of(subject, TEXT_TOKENS, 32)
    model = subject.model.requires_grad_(False)
    model.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**prompt.inputs, use_cache=True)
    assert int(costs["flops"].sum()) == counter.get_total_flops()
    keys_and_values = 2 * 2 * 8 * costs["llm_tokens"]  # of 2 heads of 8, in float32
    assert costs["kv_cache"].sum() == 4 * keys_and_values.sum()
    fewer = probe.cost(subject, 2, TEXT_TOKENS, resolution=32)
    assert fewer["kv_cache"].sel(token_type="vision").sum() == 2 * 4 * 4 * 2 * 2 * 8


@newest
def test_a_compressor_of_several_layers_over_patches_alone_is_drawn():
    subject = probe.load(*DOCUMENT_FAMILIES["granite4_vision"]())
    asked = picture(0), "what is red ?", [14, 16]
    record = probe.measure(subject, *asked, stacks=["compressor"])
    assert record["compressor"].sizes["layer"] == 2
    assert {"compressor-entropy", "compressor-mass"} <= probe.plots.figures(record).keys()


@pytest.mark.parametrize("name", OWN)
def test_cost_is_what_torch_counts_of_the_models_own_forward(name):
    subject = probe.load(*FAMILIES[name]())
    costs = probe.cost(subject, text_tokens=TEXT_TOKENS, resolution=(48, 80))
    prompt = OwnPrompt.of(subject, TEXT_TOKENS, (48, 80))
    assert costs["text_tokens"] == prompt.text_tokens == TEXT_TOKENS
    model = subject.model.requires_grad_(False)
    model.set_attn_implementation("eager")
    if name == "aria":
        model.set_experts_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(**prompt.inputs, use_cache=True)
    assert int(costs["flops"].sum()) == counter.get_total_flops()
    assert (costs["flops"] >= 0).all() and costs["flops"].sel(component="llm").sum() > 0
    cache = output.get("past_key_values")
    if cache is not None and name != "qwen3_5":  # which keeps the states of other layers too
        kept = [layer.keys.numel() + layer.values.numel() for layer in cache.layers]
        assert int(costs["kv_cache"].sum()) == 4 * sum(kept)


def test_a_second_encoder_of_the_same_images_is_an_encoder_and_no_projector():
    """DeepSeek-VL's hybrid: SAM beside SigLIP; what follows them is what torch counts of it."""
    subject = probe.load(*PICTURE_FAMILIES["deepseek_vl_hybrid"]())
    costs = probe.cost(subject, text_tokens=TEXT_TOKENS, resolution=32)["flops"]
    inputs = subject.encode(picture(0, (32, 32)), "is it red ?")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subject.model.requires_grad_(False)(**inputs)
    counted = {name: sum(each.values()) for name, each in counter.flop_counts.items()}
    base = f"{type(subject.model).__name__}.model."
    behind = ("high_res_vision_neck", "high_res_vision_proj", "aligner")
    assert int(costs.sel(component="projector").sum()) == sum(
        counted[base + name] for name in behind
    )
    both = counted[base + "vision_model"] + counted[base + "high_res_vision_model"]
    assert both <= int(costs.sel(component="vision_encoder").sum())


def test_fewer_vision_tokens_leave_what_comes_before_the_llm():
    subject = probe.load(*FAMILIES["qwen2_vl"]())
    whole, fewer = (probe.cost(subject, tokens, TEXT_TOKENS, resolution=96) for tokens in (None, 9))
    assert whole["vision_tokens"] == 36 and fewer["vision_tokens"] == 9
    parts = ["vision_encoder", "projector"]
    assert (whole["flops"] == fewer["flops"]).sel(component=parts).all()
    assert (whole["flops"] >= fewer["flops"]).sel(component="llm").all()
    with pytest.raises(ProbeError, match="expected 0 to 36 vision tokens"):
        probe.cost(subject, 37, TEXT_TOKENS, resolution=96)
    across = probe.load(*FAMILIES["mllama"]())
    with pytest.raises(ProbeError, match="got 4, of a model that reads images by cross-attention"):
        probe.cost(across, 4)


def test_a_model_of_own_resolution_is_timed():
    subject = probe.load(*FAMILIES["qwen2_vl"]())
    costs = probe.cost(subject, resolution=64, measure=1)
    assert float(costs["latency"].sum()) > 0 and costs["device"] == "cpu"


def test_sizes_given_as_two_sides_are_counted():
    model, _ = FAMILIES["internvl"]()
    costs = probe.cost(model.config)
    assert costs["vision_tokens"] == 4 and costs["height"] == 32
    assert (costs["flops"].sel(component=["vision_encoder", "projector", "llm"]) > 0).any()


@newest
def test_what_steps_differ_by_themselves_is_said_and_no_broken_promise():
    """Experts chosen behind a state that is summed up in another order: 4e-4 in the logits."""
    subject = probe.load(*PICTURE_FAMILIES["nemotron_h_omni"]())
    report = probe.verify(subject)
    assert report.passed, report.appendix
    by_name = {check.name: check for check in report.checks}
    steps = by_name["7 steps of decoding against one forward"]
    assert "the model's own: its steps against their whole maps" in str(steps.value)
    cached = by_name["logits, cached against uncached (share of the largest)"]
    assert str(cached.value).endswith("the model's own: nothing else runs")


def test_words_that_a_model_never_says_are_no_measure_of_its_logits():
    """Chameleon sets the logits of image tokens to the lowest number there is."""
    subject = probe.load(*PICTURE_FAMILIES["chameleon"]())
    report = probe.verify(subject)
    assert report.passed, report.appendix
    (cached, _) = [check for check in report.checks if check.name.startswith("logits, cached")]
    assert 1e-9 < cached.value < 1e-5, "of the largest logit of a word"
    lens = probe.logit_lens(subject, picture(0), "what is red ?", max_new_tokens=2)
    assert lens.attrs["last_layer_difference"] < 1e-4


@pytest.mark.parametrize("name", ["blip2", "idefics", "ovis2", "janus"])
def test_verify_decodes_as_the_model_itself_does(name):
    model, processor = (FAMILIES | PICTURE_FAMILIES)[name]()
    report = probe.verify(probe.load(model, processor=processor), picture(0), "what is red ?")
    assert report.passed, [check for check in report.checks if not check.passed]
