"""A check of sharing holds for the weights it was made with, and a cached prefix for the prompts
that go on from it.
"""

import models
import torch

import probe
from probe.hooks.model_structure import stacks
from probe.subject.image_prefix import EmbeddedPrompt
from probe.subject.prefix_cache import PrefixCache
from probe.subject.prefix_check import check_sharing
from tests.families.models import FAMILIES


def test_a_check_expires_when_weights_change():
    model, processor = models.llava15()
    subject = probe.load(model, processor=processor)
    inputs, stack = subject.encode(models.picture(), "what is it?"), stacks(model)["llm"]
    calls = []

    @torch.no_grad()
    def logits():
        calls.append(1)
        return model(**inputs).logits[:, -1]

    def check():
        with torch.no_grad():
            return check_sharing(model, stack, inputs, logits)

    first = check()
    count = len(calls)
    assert first.reason == "" and check() is first and len(calls) == count
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    assert check() is not first and len(calls) == 2 * count
    parameter = next(model.parameters())
    parameter.data = parameter.data.clone()
    assert len(calls) == 2 * count and check() is not first and len(calls) == 3 * count


@torch.no_grad()
def test_a_second_question_has_the_positions_that_the_model_gives_it():
    """After an image, words of Qwen-VL go on from its largest position in any axis."""
    subject = probe.load(*FAMILIES["qwen2_vl"]())
    model = subject.model
    cache = PrefixCache(model, stacks(model)["llm"])
    for question in ("what is it?", "where?"):
        inputs = subject.encode(models.picture(), question)
        prompt, _ = cache.of(inputs)
        assert torch.equal(prompt.positions, EmbeddedPrompt.of(model, inputs).positions)
