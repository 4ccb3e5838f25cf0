"""`attention_rows` equals the weights of eager attention, under any mask."""

from dataclasses import replace

import models
import pytest
import torch
from torch import nn

import probe
from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights, attention_rows
from probe.hooks.attention_tap import routed
from probe.hooks.model_structure import stacks
from tests.families.checks import QUESTION
from tests.families.score_models import SCORE_FAMILIES

FACTORIES = (models.llava15, models.llava_next_mistral, *SCORE_FAMILIES.values())


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("dropped", [(), (0, 1, 2)])
def test_rows_are_those_of_eager_attention(factory, dropped):
    model, processor = factory(attn="eager")
    subject = probe.load(model, processor=processor)
    inputs = subject.encode(models.picture(), QUESTION, response="red circle")
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


def test_rows_of_a_kernel_that_treats_scores_in_an_unknown_way_are_refused():
    ones = torch.ones(1, 1, 3, 4)
    call = AttentionCall("layer", nn.Identity(), ones, ones, ones, None, None, 0.5, True, None, {})
    last = torch.tensor([2])
    torch.testing.assert_close(attention_rows(call, 0, last), torch.full((1, 1, 3), 1 / 3))
    with pytest.raises(ProbeError, match="got s_aux in layer, used in another way"):
        attention_rows(replace(call, rule=None, options={"s_aux": torch.ones(1)}), 0, last)
