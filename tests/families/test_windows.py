"""Sliding windows that end within the prompt: measured, and removed tokens leave nothing behind."""

import pytest
import torch

import probe
from probe.reducers import FastV
from probe.subject.inputs import with_response
from tests.families.checks import QUESTION, SAME, Case, decoding, measured, removed_is_frozen, swept
from tests.families.models import FAMILIES, text

WINDOW = 10
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
TEXTS = {
    "gemma3": text("gemma3_text", head_dim=8, sliding_window=WINDOW),
    "cohere2_vision": text(
        "cohere2", sliding_window=WINDOW, head_dim=8, logit_scale=1.0, layer_types=ALTERNATING
    ),
}


@pytest.fixture(scope="module", params=TEXTS)
def case(request):
    return Case(probe.load(*FAMILIES[request.param](text_config=TEXTS[request.param])))


def test_a_window_that_bites_is_measured_and_tokens_are_removed(case):
    assert case.answered[0]["input_ids"].shape[1] > WINDOW
    assert measured(case) == "yes"
    assert removed_is_frozen(case) == "yes"
    assert decoding(case) == "yes"
    assert swept(case) == "yes, each case alone"


@torch.no_grad()
def test_decoding_with_a_cache_equals_a_forward_without(case):
    """Both under a reducer that leaves the first layer, a window's, complete."""
    subject = case.subject
    with FastV(1, 0.5)(subject):
        inputs = subject.encode(case.shown(0), QUESTION)
        made = subject.model.generate(
            **inputs,
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        whole = with_response(inputs, made.sequences[0, -3:-1])
        logits = subject.model(**whole, use_cache=False).logits[0, -3:]
    torch.testing.assert_close(torch.cat(made.logits), logits, atol=SAME, rtol=0)


def test_queries_that_a_layer_scales_by_their_place():
    """Llama 4 counts places over the tokens that are there: removed ones would move the others."""
    places = {"attn_temperature_tuning": True, "floor_scale": 8, "no_rope_layers": [1, 0, 1]}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}
    config = text("llama4_text", head_dim=8, **places, **experts)
    case = Case(probe.load(*FAMILIES["llava"](text_config=config)))
    refused = "drop_vision: expected at most 7 tokens, .* the temperature leaves alone, of layer 1"
    with probe.drop_vision(case.subject, [0], "remove"):
        case.logits(case.answered[0])
    with (
        pytest.raises(probe.ProbeError, match=refused + r", got \d+; use mode='mask'"),
        probe.drop_vision(case.subject, [0, 1], "remove"),
    ):
        case.logits(case.answered[0])
    for module in case.subject.model.modules():
        if hasattr(module, "floor_scale"):
            module.floor_scale = 8192
    assert removed_is_frozen(case) == decoding(case) == "yes"
