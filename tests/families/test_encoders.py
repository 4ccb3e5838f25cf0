"""Encoders in all their ways to read patches: each goes to its place, in whatever order they come,
with whatever stands beside them. And reducers of the encoder's output: on every model that makes a
token of each patch.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING

import probe
from probe.errors import ProbeError
from probe.hooks.attention_tap import tap
from probe.hooks.layer_arguments import hidden_states
from probe.hooks.model_structure import stacks
from probe.measures.attention.reference import largest_difference
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.encoder_concentration import concentration
from probe.reducers import DivPrune, PruMerge, VisionZip, encode
from probe.reducers.encoder_reducer import tapped
from tests.families.checks import EXACT, QUESTION, picture
from tests.families.models import CLIP, FAMILIES, square, text
from tests.families.processors import IMAGE
from tests.families.table import ALL_FAMILIES
from tests.families.video_models import VIDEO_FAMILIES, clip

PACKED = ["qwen2_vl", "qwen2_5_vl", "glm4v", "mistral3", "gemma4", "mllama"]
UNEQUAL = ["mistral3", "gemma4", "mllama", "qwen2_5_vl"]
WIDE = ["lighton_ocr", "lfm2_vl", "minimax_m3_vl", "nemotron_h_omni", "minicpmv4_6", "minicpm_ocr"]


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
    is_changed = (hidden[0] != hidden[1]).any(-1).flatten().numpy()
    made = stack_statistics(subject, before, ["vision"])["vision"]
    grid, statistic = made.grids[0], made.statistic
    widths = [range(statistic.width(row)) for row in statistic.order]
    runs = zip(statistic.order, widths, strict=True)
    is_changed = is_changed[[statistic.vision[row, key] for row, keys in runs for key in keys]]
    within = (grid.image == 1) & (grid.box[:, :2] > 0.45).all(1)
    outside = (grid.image == 0) | (grid.box[:, 2:] < 0.45).any(1)  # resizing blurs the edge
    assert within.any() and is_changed[within].all() and not is_changed[outside].any()
    assert largest_difference(subject, before, "vision") < EXACT


@pytest.mark.parametrize(
    "name", [*UNEQUAL, *(pytest.param(name, marks=pytest.mark.wide) for name in WIDE)]
)
def test_images_of_unequal_sizes_are_measured_as_each_alone(name):
    """The encoder reads each image by itself, so that its patches receive what they do alone."""
    subject = probe.load(*ALL_FAMILIES[name]())
    images = [picture(0, (97, 61)), picture(1, (40, 90))]
    shown = [{"type": "image"}] * 2 + [{"type": "text", "text": QUESTION}]
    samples = [
        probe.Sample("both", tuple(images), [{"role": "user", "content": shown}]),
        *(probe.Sample(str(number), image, QUESTION) for number, image in enumerate(images)),
    ]
    both, *alone = (
        probe.measure_samples(subject, [sample], [[14]], stacks=["vision"])["vision"].to_dataset()
        for sample in samples
    )
    for layer in both["layer"].values:
        received = [
            each["received"].sel(layer=layer, query_type="vision").isel(sample=0).values
            for each in (both, *alone)
        ]
        np.testing.assert_allclose(received[0], np.concatenate(received[1:]), atol=EXACT)
    np.testing.assert_array_equal(
        both["key_image"].isel(sample=0),
        np.repeat([0, 1], [each.sizes["key"] for each in alone]),
    )


@pytest.mark.parametrize("name", ["deepseek_ocr2", "unlimited_ocr"])
def test_patches_that_another_encoder_merged_are_cells(name):
    """SAM's 64 patches, 16 to a feature: what is changed in a cell changes its position most."""
    if name not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have it")
    subject = probe.load(*ALL_FAMILIES[name]())
    shown = picture(0)
    before = subject.encode(shown, QUESTION)
    made = stack_statistics(subject, before, ["vision"])["vision"]
    (grid,) = made.grids
    assert grid.row.tolist() == [0, 0, 1, 1] and grid.col.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(grid.box[1], (0.5, 0, 1, 0.5), atol=0.01)
    hidden = encoder_input(subject, before)[0]
    is_cell = made.statistic.vision[0, : len(hidden)]
    for cell, box in enumerate(grid.box):
        changed = shown.copy()
        left, top, right, bottom = (box * (97, 61, 97, 61)).round().astype(int).tolist()
        changed.paste((255, 255, 255), (left, top, right, bottom))
        after = encoder_input(subject, subject.encode(changed, QUESTION))[0]
        change = (after - hidden).norm(dim=-1)[is_cell]
        assert int(change.argmax()) == cell
    assert largest_difference(subject, before, "vision") < EXACT
    record = probe.measure(subject, shown, QUESTION, [14], stacks=["vision"])
    node = record["vision"].to_dataset()
    np.testing.assert_allclose(
        node["mass"].sum("key_type", min_count=1).sel(query_type="vision"), 1, atol=EXACT
    )


def test_registers_and_filling_that_patches_see_are_of_a_type_of_their_own():
    subject = probe.load(*FAMILIES["mllama"]())
    record = probe.measure(subject, picture(0), QUESTION, response=[14], stacks=["vision"])
    node = record["vision"].to_dataset()
    counts = dict(zip(node["key_type"].values, node["key_count"].values[0], strict=True))
    # two tiles of a class token, 16 patches and 7 of filling; the second tile is empty
    assert counts == {"cls": 1, "vision": 16, "other": 7 + 24}
    np.testing.assert_allclose(node["mass"].sum("key_type"), 1, atol=EXACT)
    assert node.sizes["layer"] == 3  # those that read the whole image behind tiles too
    assert probe.plots.mass(record, stack="vision")


@pytest.mark.parametrize("shown", [picture(0), clip(0)], ids=["image", "video"])
def test_questions_that_share_what_one_of_two_encoders_reads_are_measured_together(shown):
    subject = probe.load(*VIDEO_FAMILIES["video_llava"]())
    samples = [probe.Sample(question, shown, question) for question in (QUESTION, "is it red ?")]
    together = probe.measure_samples(subject, samples, [[14], [16]], progress=False)
    assert int(together["llm"].sizes["sample"]) == 2
    for number, sample in enumerate(samples):
        alone = probe.measure(subject, shown, sample.question, [(14, 16)[number]])
        of_sample = together["llm"]["mass"].isel(sample=number).values
        np.testing.assert_allclose(of_sample, alone["llm"]["mass"].values[0], atol=1e-5)


def test_rows_that_see_each_other_are_no_images_apart():
    subject = probe.load(*FAMILIES["mistral3"](attn="eager"))
    inputs = subject.encode([picture(0), picture(1)], "is it red ?")
    stack = stacks(subject.model)["vision"]
    made, calls = stack_statistics(subject, inputs, ["vision"])["vision"], []
    with torch.no_grad(), tap(stack.attention, calls.append):
        subject.model(**inputs, use_cache=False)
    made.statistic(calls[0])
    open_to_all = replace(calls[1], model_mask=torch.zeros_like(calls[1].model_mask))
    with pytest.raises(ProbeError, match="attends within each image by itself"):
        made.statistic(open_to_all)


@pytest.mark.parametrize("name", ["paligemma", "deepseek_vl", "janus"])
def test_a_model_that_reads_the_encoders_output_is_reduced(name):
    subject = probe.load(*ALL_FAMILIES[name]())
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
    "deepseek_vl_hybrid": "whose DeepseekVLHybridAligner reads 2 encoders",
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_no_token_is_one_patch_reducers_of_the_encoder_say_why(name):
    subject = probe.load(*ALL_FAMILIES[name]())
    with pytest.raises(ProbeError, match=REFUSED[name]), VisionZip(3, 2)(subject):
        subject.encode(picture(0), QUESTION)
    assert int(subject.encode(picture(0), QUESTION).types.vision.sum()) != 5


def test_registers_among_the_features_are_no_patches_to_choose():
    """They stood in the places of patches, or behind the last one."""
    encoder = {**CLIP, "model_type": "dinov3_vit", "num_register_tokens": 2}
    fields = {"vision_config": encoder, "image_token_index": IMAGE, "text_config": text("llama")}
    subject = probe.load(*square("LlavaForConditionalGeneration", "llava", 18, **fields))
    assert largest_difference(subject, subject.encode(picture(0), QUESTION), "vision") < EXACT
    with pytest.raises(ProbeError, match=r"with 2 others \(registers\)"), VisionZip(3, 2)(subject):
        subject.encode(picture(0), QUESTION)


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


@pytest.mark.parametrize("name", ["mllama", "gemma4"])
def test_concentration_counts_patches_alone(name):
    """Not what fills up tiles (Mllama) or images of unequal size."""
    subject = probe.load(*FAMILIES[name]())
    image = picture(0)
    found = concentration(subject, image)
    assert found.sizes["patch"] == len(subject.encode(image, "?").encoder_grid[0])


class Convolution(nn.Module):
    """In the place of attention: each patch reads its neighbours."""

    def __init__(self, width: int):
        super().__init__()
        self.mix = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, hidden_states, **options):
        return self.mix(hidden_states.mT).mT, None


@pytest.fixture
def convolving():
    """A LLaVA of which the first of three encoder layers has no attention; the LLM reads the
    second one's output.
    """
    model, processor = FAMILIES["llava"](vision_config={**CLIP, "num_hidden_layers": 3})
    stacks(model)["vision"].layers[0].self_attn = Convolution(32)
    return probe.load(model, processor=processor)


def test_layers_of_an_encoder_without_attention_keep_their_numbers(convolving):
    found = concentration(convolving, picture(0))
    assert found.attrs["read_layer"] == 1
    for name in ("gini", "entropy", "class_share", "kept_from_last"):
        assert np.isnan(found[name].isel(layer=0)).all()
        assert not np.isnan(found[name].isel(layer=[1, 2])).any()
    assert found["kept_from_last"].isel(view=0, layer=1) == 1
    assert probe.plots.concentration(found)


def test_reducers_rank_by_the_layers_that_they_mean(convolving):
    inputs = convolving.encode(picture(0), QUESTION)
    tower = convolving.model.model.vision_tower
    reducer, calls = VisionZip(3, 2), []
    with torch.no_grad(), tap(stacks(convolving.model)["vision"].attention, calls.append):
        chosen = encode(tower, inputs["pixel_values"], reducer)
    with tapped(tower, -2, reducer) as seen:
        tower(inputs["pixel_values"], output_hidden_states=True)
        assert [*seen._running.calls] == [1, 2]
        assert torch.equal(seen._running.calls[1].key, calls[0].key)
    assert chosen.tokens.shape[1] == 5
    convolving.model.config.vision_feature_layer = -3  # the output of the convolution
    with pytest.raises(ProbeError, match=r"layer 0 \(from 0\) has none"), reducer(convolving):
        convolving.encode(picture(0), QUESTION)


class InItsOwnWay(nn.Module):
    """Attention as timm's: one projection of queries, keys and values, a softmax of its own."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.num_heads, self.qkv = heads, nn.Linear(width, 3 * width)

    def forward(self, hidden_states, **options):
        parts = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2), None


def test_an_encoder_whose_attention_cannot_be_seen_is_left_out():
    model, processor = FAMILIES["llava"]()
    for layer in stacks(model)["vision"].layers:
        layer.self_attn = InItsOwnWay(4, 32)
    subject = probe.load(model, processor=processor)
    with pytest.warns(UserWarning, match=r"the vision stack is left out: .* \(InItsOwnWay\)"):
        record = probe.measure(subject, picture(0), QUESTION, [14])
    assert [*record.children] == ["llm"]
    with pytest.raises(ProbeError, match=r"interface, or weights .* \(InItsOwnWay\)"):
        probe.measure(subject, picture(0), QUESTION, [14], stacks=["vision"])
