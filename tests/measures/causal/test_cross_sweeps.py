"""Sweeps over heads and patches of cross-attention to the image: each case is that of the block,
at the LLM's number of its layer.
"""

import numpy as np
import pytest
import torch

import probe
from probe.errors import ProbeError
from probe.interventions import ablate_heads, patch
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.measures.causal.attribution_patching import attribution_patching
from tests.families.checks import QUESTION, picture
from tests.families.models import FAMILIES

SAMPLES = [probe.Sample(str(seed), picture(seed), QUESTION, answer="red") for seed in range(2)]


@pytest.fixture(scope="module")
def subject():
    return probe.load(*FAMILIES["mllama"]())


def logprob(subject, sample, block):
    """The log-probability of the gold answer in a forward under a block."""
    prompts = SamplePrompts.of(subject, sample, None)
    inputs, gold = prompts.with_gold(prompts.inputs), prompts.gold
    with block, torch.no_grad():
        logits = subject.model(**inputs, use_cache=False).logits[0, -len(gold) :]
    return float(logits.log_softmax(-1).gather(-1, gold[:, None]).sum())


def test_heads_that_read_the_image_are_swept(subject):
    table = probe.head_sweep(subject, SAMPLES, stack="cross", progress=False)
    found = table["gold_logprob"].isel(sample=0)
    assert found.sizes["layer"] == 3 and found.sel(layer=[0, 2]).isnull().all()
    alone = [
        logprob(subject, SAMPLES[0], ablate_heads(subject, {1: head}, stack="cross"))
        for head in range(4)
    ]
    np.testing.assert_allclose(found.sel(layer=1), alone, atol=1e-5)
    words = probe.head_sweep(subject, SAMPLES[:1], control=False, progress=False)
    assert words["gold_logprob"].isel(sample=0).sel(layer=1).isnull().all()
    assert "words read the image by cross-attention" in table.attrs["sharing"]
    assert "heads of cross-attention" in figure_text(probe.plots.head_effects(table))


def figure_text(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_blocks_that_read_the_image_are_patched(subject):
    table = probe.patch_sweep(subject, SAMPLES, stack="cross", site="attention", progress=False)
    assert table["layer"].values.tolist() == [1]
    found = table["patched"].isel(sample=0, direction=0).sel(layer=1, group="last")
    clean, other = (subject.encode(sample.image, QUESTION) for sample in SAMPLES)
    last = torch.as_tensor(clean.types.as_types("fine").mask("last")[0])
    block = patch(subject, clean, 1, last, "attention", stack="cross")
    with block, torch.no_grad():
        logits = subject.model(**other, use_cache=False).logits[0, -1]
    gold = SamplePrompts.of(subject, SAMPLES[0], None).gold
    assert len(gold) == 1
    np.testing.assert_allclose(found, float(logits.log_softmax(-1)[gold]), atol=1e-5)


def test_what_a_sweep_cannot_do_there_is_told(subject):
    with pytest.raises(ProbeError, match=r"positions that lie in the image.* words that stand for"):
        probe.patch_sweep(subject, SAMPLES, positions="cells", progress=False)
    with pytest.raises(ProbeError, match="cross-attention; use corruption='image'"):
        probe.patch_sweep(subject, SAMPLES, corruption="noise", progress=False)
    with pytest.raises(ProbeError, match="by cross-attention; use patch_sweep"):
        attribution_patching(subject, SAMPLES, progress=False)
    with pytest.raises(ProbeError, match="which sees nothing but the image"):
        probe.head_sweep(subject, SAMPLES, mode="no_vision", stack="cross", progress=False)
