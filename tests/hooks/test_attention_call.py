"""`attention_rows` equals the weights of eager attention, under any mask."""

import models
import pytest
import torch

import probe
from probe.hooks.attention_call import AttentionWeights, attention_rows
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
