"""`attention_rows` equals the weights of eager attention, under any mask."""

import copy
from dataclasses import replace

import models
import pytest
import torch
from torch import nn
from transformers import Gemma2Config

import probe
from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights, attention_rows
from probe.hooks.attention_tap import routed
from probe.hooks.model_structure import stacks


@pytest.mark.parametrize("factory", [models.llava15, models.llava_next_mistral])
@pytest.mark.parametrize("dropped", [(), (0, 1, 2)])
def test_rows_are_those_of_eager_attention(factory, dropped):
    model, processor = factory(attn="eager")
    subject = probe.load(model, processor=processor)
    inputs = subject.encode(models.picture(), "what is it?", response="a red circle")
    difference = []

    def compare(call, kernel):
        output, weights = kernel(call)
        position = torch.tensor([call.key_count - 1, 3, call.key_count - 2])
        rows = attention_rows(call, 0, position)
        difference.append((rows - weights[0][:, position]).abs().max())
        returned = AttentionWeights(call.name, call.module, weights)
        assert torch.equal(attention_rows(returned, 0, position), weights[0][:, position])
        return output, weights

    attention = stacks(model)["llm"].attention
    with (
        torch.no_grad(),
        probe.drop_vision(subject, dropped),
        routed(attention, compare, innermost=True),
    ):
        model(**inputs)
    assert len(difference) == len(attention) and max(difference) < 1e-6


@pytest.mark.parametrize("option", ["softcap", "s_aux", "position_bias"])
def test_weights_that_are_no_plain_softmax_are_not_computed(option):
    ones = torch.ones(1, 1, 3, 4)
    plain = AttentionCall(
        "layer", nn.Identity(), ones, ones, ones, None, None, 0.5, True, None, {option: None}
    )
    last = torch.tensor([2])
    torch.testing.assert_close(attention_rows(plain, 0, last), torch.full((1, 1, 3), 1 / 3))
    with pytest.raises(ProbeError, match=f"softmax of scaled products, got {option} in layer"):
        attention_rows(replace(plain, options={option: torch.ones(1)}), 0, last)


def test_a_model_that_caps_its_scores_is_refused_and_can_still_be_dropped():
    llama, processor = models.llava15(attn="eager")
    config = copy.deepcopy(llama.config)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_logit_softcapping": 5.0}
    words = {"vocab_size": config.text_config.vocab_size, "pad_token_id": 0}
    config.text_config = Gemma2Config(**sizes, **heads, **words)
    model = type(llama)._from_config(config, attn_implementation="eager").eval()
    subject = probe.load(model, processor=processor)
    with pytest.raises(ProbeError, match=r"measure: .*got softcap in model\.language_model"):
        probe.measure(subject, models.picture(), "what is it?", response="a red circle")
    logits = []
    with torch.no_grad(), probe.drop_vision(subject, range(2), "mask"):
        for seed in (0, 1):
            inputs = subject.encode(models.picture(seed), "what is it?")
            logits.append(model(**inputs).logits[0, -1])
    torch.testing.assert_close(*logits)
