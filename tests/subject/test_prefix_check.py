"""A check of sharing holds for the weights it was made with, and a cached prefix for the prompts
that go on from it.
"""

import models
import numpy as np
import torch

import probe
from probe.hooks.model_state import state_of
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


def test_layers_that_cannot_be_run_by_themselves_run_in_the_models_own_forward():
    """As those of an indexer, whose mask is over all tokens (Mistral Large 4, dots.note)."""
    subject = probe.load(*FAMILIES["llava"]())
    layer = stacks(subject.model)["llm"].layers[-1]
    whole = layer.forward

    def wants_all_tokens(hidden, *args, position_embeddings, **kwargs):
        if hidden.shape[1] < 5:
            raise RuntimeError("The size of tensor a (29) must match")
        return whole(hidden, *args, position_embeddings=position_embeddings, **kwargs)

    sample = probe.Sample("a", models.picture(), "what is red ?", answer="red")
    options = {"heads": {0: 0, 2: [0, 1]}, "progress": False}
    expected = probe.head_sweep(subject, sample, **options)
    layer.forward = wants_all_tokens
    checks = state_of(subject.model).sharing_checks
    assert checks
    checks.clear()
    found = probe.head_sweep(subject, sample, **options)
    reasons = {check.reason for check in state_of(subject.model).sharing_checks.values()}
    assert any("can't be run by themselves (RuntimeError: The size" in each for each in reasons)
    for name in found.data_vars:
        if found[name].dtype.kind == "f":
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4, err_msg=name)
