"""LLaVA-Mini: its words have read the image before the LLM does, so regions are pixels, and
pre-fusion has a lens.
"""

import models
import numpy as np
import pytest
import torch
from PIL import Image

import probe
from probe.errors import ProbeError
from probe.measures.attribution import attribute
from probe.measures.logit_lens import logit_lens

QUIET = {"progress": False, "attention": False}
ANSWER = "a red circle"


@pytest.fixture(scope="module")
def mini():
    model, processor = models.llava_mini(side=16)
    return probe.load(model, processor=processor)


@torch.no_grad()
def logprob(subject, inputs, **changed) -> float:
    prompt = int(inputs.types.prompt_length[0])
    said = inputs.types.role[0] == 5
    count, end = int(said.sum()), int(np.flatnonzero(said)[-1]) + 1
    tensors = {
        n: t[:, :end] if t.shape[1:] == inputs["input_ids"].shape[1:] else t
        for n, t in inputs.items()
    }
    logits = (
        subject.model(**{**tensors, **changed})
        .logits[0, prompt - 1 : prompt - 1 + count]
        .log_softmax(-1)
    )
    return float(logits[torch.arange(count), inputs["input_ids"][0, prompt:end]].sum())


def test_ablation_is_a_loop_over_grey_patches(mini):
    inputs = mini.encode(models.picture(1), "where is it?", ANSWER)
    found = attribute(mini, models.picture(1), "where is it?", ANSWER, **QUIET)
    colour = tuple(int(v * 255) for v in mini.processor.image_processor.image_mean)
    grey = mini.encode(Image.new("RGB", models.picture(1).size, colour), "?")["pixel_values"]
    own = logprob(mini, inputs)
    assert float(found["logprob"]) == pytest.approx(own, abs=1e-5)
    for feature in range(4):
        pixels = inputs["pixel_values"].clone()
        block = np.s_[
            ..., feature // 2 * 8 : feature // 2 * 8 + 8, feature % 2 * 8 : feature % 2 * 8 + 8
        ]
        pixels[block] = grey[block]
        without = logprob(mini, inputs, pixel_values=pixels)
        assert float(found["attribution"][feature]) == pytest.approx(own - without, abs=2e-5)


def test_sub_images_and_the_whole_lose_the_same_region():
    model, processor = models.llava_mini(side=16, ratio=2)
    subject = probe.load(model, processor=processor)
    everything = {"all": np.ones((30, 40), bool)}
    found = attribute(
        subject, models.picture(1), "where is it?", ANSWER, over=everything, words=False, **QUIET
    )
    assert float(found["attribution"][0]) == pytest.approx(
        float(found["logprob"] - found["logprob_without"]), abs=1e-5
    )
    assert set(found["patch_tile"].values.tolist()) == {0, 1, 2, 3, 4}


def test_what_needs_tokens_of_the_llm_is_refused_in_a_line(mini):
    for options in ({"baseline": "hidden"}, {"method": "gradient_x_attention"}):
        with pytest.raises(
            ProbeError, match=r"vision tokens of the LLM in every region.*baseline='mean'"
        ):
            attribute(mini, models.picture(1), "where is it?", ANSWER, **options, **QUIET)
    words = attribute(
        mini, models.picture(1), "where is it?", ANSWER, over="words", baseline="zero", **QUIET
    )
    assert bool((words["attribution"] != 0).all()) and "embedded words" in words.attrs["sharing"]


def test_the_lens_reads_pre_fusion_too(mini):
    whole = logit_lens(mini, models.picture(1), "where is it?", ANSWER)
    before = logit_lens(mini, models.picture(1), "where is it?", ANSWER, stack="prefusion")
    assert whole.attrs["last_layer_difference"] == pytest.approx(0, abs=1e-5)
    assert (
        before["row_type"].values.tolist()[:4] == ["vision"] * 4
        and "compressed" in before["row_type"].values
    )
    fused = {}
    hook = mini.model.model.prefusion.layers[-1].register_forward_hook(
        lambda m, a, out: fused.update(last=out)
    )
    with torch.no_grad():
        mini.model(**mini.encode(models.picture(1), "where is it?", ANSWER))
        head = (
            mini.model.lm_head(mini.model.model.language_model.norm(fused["last"][0]))
            .softmax(-1)
            .amax(-1)
        )
    hook.remove()
    count = len(before["row_key"]) - 4
    np.testing.assert_allclose(before["probability"][-1, 4:], head[:count], atol=1e-5)
