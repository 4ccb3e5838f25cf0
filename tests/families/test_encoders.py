"""Encoders that read packed patches: each call goes to its place, in whatever order they come. And
reducers of the encoder's output: on every model that makes a token of each patch.
"""

import pytest
import torch

import probe
from probe.errors import ProbeError
from probe.hooks.layer_arguments import hidden_states
from probe.hooks.model_structure import stacks
from probe.measures.attention.reference import largest_difference
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.encoder_concentration import concentration
from probe.reducers import DivPrune, PruMerge, VisionZip
from tests.families.checks import EXACT, QUESTION, picture
from tests.families.models import FAMILIES

PACKED = ["qwen2_vl", "qwen2_5_vl", "glm4v"]


def encoder_input(subject, inputs):
    """What the encoder's first layer is given: (position, size)."""
    seen = []
    layer = stacks(subject.model)["vision"].layers[0]
    hook = layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(hidden_states(args, kwargs)), with_kwargs=True
    )
    with hook, torch.no_grad():
        subject.model(**inputs, use_cache=False)
    return seen[0]


@pytest.mark.parametrize("name", PACKED)
def test_a_changed_part_of_an_image_changes_the_patches_that_lie_there(name):
    subject = probe.load(*FAMILIES[name]())
    images = [picture(0, (97, 61)), picture(1, (50, 110))]
    changed = images[1].copy()
    changed.paste((255, 255, 255), (25, 55, 50, 110))  # the right half, lower half
    question = "is it red ?"
    before = subject.encode(images, question)
    after = subject.encode([images[0], changed], question)
    hidden = [encoder_input(subject, inputs) for inputs in (before, after)]
    is_changed = (hidden[0] != hidden[1]).any(1).numpy()
    statistic = stack_statistics(subject, before, ["vision"])["vision"]
    grid = statistic.grids[0]
    within = (grid.image == 1) & (grid.box[:, :2] > 0.45).all(1)
    outside = (grid.image == 0) | (grid.box[:, 2:] < 0.45).any(1)  # resizing blurs the edge
    assert within.any() and is_changed[within].all() and not is_changed[outside].any()
    assert largest_difference(subject, before, "vision") < EXACT


@pytest.mark.parametrize("name", ["paligemma", "deepseek_vl"])
def test_a_model_that_reads_the_encoders_output_is_reduced(name):
    subject = probe.load(*FAMILIES[name]())
    whole = subject.encode(picture(0), QUESTION)
    with torch.no_grad():
        plain = subject.model(**whole).logits
        with pytest.warns(UserWarning, match="nothing is reduced"), VisionZip(16, 0)(subject):
            kept = subject.model(**subject.encode(picture(0), QUESTION)).logits
        torch.testing.assert_close(kept, plain, atol=1e-4, rtol=1e-4)
        for reducer, tokens in ((VisionZip(3, 2), 5), (DivPrune(6), 6), (PruMerge(0.25), None)):
            with reducer(subject):
                inputs = subject.encode(picture(0), QUESTION)
                left = int(inputs.types.vision.sum())
                assert left == (tokens or left) < 16 and len(inputs.grid[0]) == left
                (ids,) = subject.generate_ids(inputs, 2)
                assert len(ids) and torch.isfinite(subject.model(**inputs).logits).all()
        assert torch.equal(subject.model(**whole).logits, plain)


SEVERAL = "makes tokens of several patches"
REFUSED = {
    "qwen2_vl": f"whose Qwen2VisionTransformerPretrainedModel {SEVERAL}",
    "gemma3": f"Gemma3MultiModalProjector, which {SEVERAL}",
    "ovis2": f"Ovis2VisionModel, which {SEVERAL}",
    "gemma4": "patches of all images in one sequence",
    "blip2": "whose compressor reads the whole grid of them",
    "mllama": "whose words read the image by cross-attention",
    "fuyu": "which has no encoder",
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_no_token_is_one_patch_reducers_of_the_encoder_say_why(name):
    subject = probe.load(*FAMILIES[name]())
    with pytest.raises(ProbeError, match=REFUSED[name]), VisionZip(3, 2)(subject):
        subject.encode(picture(0), QUESTION)
    assert int(subject.encode(picture(0), QUESTION).types.vision.sum()) != 5


@pytest.mark.parametrize("name", ["video_llava", "qwen2_vl", "onevision", "video_llama_3"])
def test_concentration_runs_the_encoder_as_the_model_does(name):
    """Whatever its `get_image_features` wants beside the pixels."""
    found = concentration(probe.load(*FAMILIES[name]()), picture(0))
    torch.testing.assert_close(
        torch.from_numpy(found["received"].sum("patch").values),
        torch.ones(found.sizes["view"], found.sizes["layer"], dtype=torch.float64),
    )


def test_concentration_of_windows_is_refused():
    subject = probe.load(*FAMILIES["qwen2_5_vl"]())
    with pytest.raises(ProbeError, match=r"attend over all patches of a view, got windows"):
        concentration(subject, picture(0))
