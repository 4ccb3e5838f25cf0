"""Every layer and group of positions patched at once is each patched alone; what is planted is
found; drawn pairs differ in one thing.
"""

import models
import numpy as np
import pytest
import torch

import probe
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.interventions import patch
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.models.planted import planted
from probe.models.tiny.scene_pairs import CHANGES, scene_pairs
from probe.records.patch_effects import agreement, recovered, recovered_share
from tests.families.models import FAMILIES as OTHERS
from tests.families.video_models import VIDEO_FAMILIES, clip

FAMILIES = {
    "1.5": models.llava15,
    "next": models.llava_next_vicuna,
    "window": models.llava_next_mistral,
    "mini": models.llava_mini,
}


def wide(*values):
    """A case that the default run leaves out."""
    return pytest.param(*values, marks=pytest.mark.wide)


def loaded(name, attn="sdpa"):
    model, processor = FAMILIES[name](layers=3, attn=attn)
    return probe.load(model, processor=processor)


def pair():
    question = "what is in the picture?"
    clean, other = models.picture(0), models.picture(5)
    return Sample("a", clean, question, answer="a red circle", corrupted=other)


def alone(subject, sample, layer, mask, site, direction="denoise", **options):
    """The gold answer's log-probability in a forward under the block."""
    prompts = SamplePrompts.of(subject, sample, sample.corrupted)
    clean, corrupted = (prompts.with_gold(each) for each in (prompts.inputs, prompts.other))
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    where = mask
    if not isinstance(mask, str):
        where = np.zeros(base["input_ids"].shape[1], dtype=bool)
        where[: len(mask)] = mask
    with patch(subject, source, layer, where, site, **options), torch.no_grad():
        logits = subject.model(**base).logits[0, -len(prompts.gold) :]
    return float(logits.float().log_softmax(-1).gather(-1, prompts.gold[:, None]).sum())


@pytest.mark.parametrize(
    ("family", "attn", "site"),
    [
        ("1.5", "eager", "head"),
        ("next", "sdpa", "mlp"),
        ("mini", "sdpa", "residual"),
        wide("1.5", "sdpa", "residual"),
        wide("window", "eager", "attention"),
        *(wide("1.5", "sdpa", site) for site in ("attention", "mlp", "head")),
        wide("next", "eager", "attention"),
        wide("window", "sdpa", "residual"),
        wide("mini", "eager", "head"),
    ],
)
def test_a_sweep_is_every_case_alone(family, attn, site):
    subject, sample = loaded(family, attn), pair()
    heads = {"heads": [0, 2]} if site == "head" else {}
    table = probe.patch_sweep(subject, sample, (0, 2), site=site, **heads, progress=False)
    assert table.attrs["sharing"] == "exact"
    inputs = subject.encode(sample.image, sample.question)
    fine = inputs.types.as_types("fine")
    for layer in (0, 2):
        for group in ("vision", "instruction", "last"):
            expected = alone(subject, sample, layer, fine.mask(group)[0], site, **heads)
            found = float(table["patched"].sel(layer=layer, group=group).squeeze())
            assert found == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))
    untouched = table["patched"].sel(group="bos").values.squeeze()
    is_same = (untouched == table["corrupted"].values).all()
    assert is_same == (family != "mini"), "what precedes the image is the same unless it was fused"


@pytest.mark.parametrize(
    ("name", "layers", "sharing"),
    [
        ("qwen3_5", "all", "exact"),  # attention in two of four layers
        ("paligemma", [1], "its logits are not those of its layers alone"),
    ],
)
def test_other_families_are_each_case_alone(name, layers, sharing):
    subject, sample = probe.load(*OTHERS[name]()), pair()
    table = probe.patch_sweep(subject, sample, layers, site="attention", progress=False)
    assert table.attrs["sharing"] == sharing
    vision = subject.encode(sample.image, sample.question).types.vision[0]
    for layer in table["layer"].values:
        expected = alone(subject, sample, int(layer), vision, "attention")
        found = float(table["patched"].sel(layer=layer, group="vision").squeeze())
        assert found == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


def test_prefusion_runs_each_case_alone():
    subject, sample = loaded("mini"), pair()
    table = probe.patch_sweep(
        subject, sample, [1], direction="both", stack="prefusion", progress=False
    )
    for direction in ("denoise", "noise"):
        found = float(table["patched"].sel(direction=direction, group="text").squeeze())
        expected = alone(subject, sample, 1, "text", "residual", direction, stack="prefusion")
        assert found == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


def test_what_is_planted_is_found(tmp_path):
    known = planted(read_layers=(2, 4), patches=(14, 15))
    subject = probe.load(known.model, processor=known.processor)
    samples = [
        Sample(f"{seed}", known.image("red", seed), known.question, answer="red",
               corrupted=known.image("blue", seed))
        for seed in range(2)
    ]  # fmt: skip
    table = probe.patch_sweep(subject, samples, direction="both", progress=False)
    share = recovered_share(table).estimate  # (layer, group)
    groups = list(table["group"].values)
    of_vision = share[:, groups.index("vision")]
    assert of_vision[:2] == pytest.approx([1, 1], abs=1e-4)  # both read layers see the clean image
    assert of_vision[4:] == pytest.approx([0, 0], abs=1e-4)  # nothing reads it any more
    of_last = share[:, groups.index("last")]
    assert of_last[4:] == pytest.approx([1, 1], abs=1e-4)  # all has been read
    noise = recovered_share(table, "noise").estimate
    assert noise[:2, groups.index("vision")] == pytest.approx([1, 1], abs=1e-4)
    by_heads = probe.patch_sweep(subject, samples, site="head", heads=[0], progress=False)
    moved = np.abs(recovered_share(by_heads).estimate[:, groups.index("last")])
    assert set(np.flatnonzero(moved > 1e-4)) == {2, 4}
    cells = probe.patch_sweep(subject, samples, [0], "cells", progress=False)
    best = recovered(cells).sort_values("recovered").iloc[-1]
    assert best["group"] == "row 2, column 2"  # patches 14 and 15 of 6 x 6
    probe.save_record(table, tmp_path / "patches.zarr")
    assert recovered(probe.open_record(tmp_path / "patches.zarr")).equals(recovered(table))
    assert agreement(table, table)["spearman"] == pytest.approx(1)


@pytest.mark.parametrize("corruption", ["noise", "question", wide("image"), wide("blank")])
def test_corruptions(corruption):
    subject = loaded("1.5")
    words = ("is it red?", "is it there?")  # as many tokens
    samples = [
        Sample(str(number), models.picture(number), question, answer="a red circle")
        for number, question in enumerate(words)
    ]
    arguments = {"corruption": corruption, "progress": False}
    table = probe.patch_sweep(subject, samples, [1], **arguments)
    assert (table["clean"] != table["corrupted"]).all()
    again = probe.patch_sweep(subject, samples, [1], **arguments)
    assert table.equals(again)
    changed = (table["patched"] != table["corrupted"]).any("sample").squeeze()
    assert bool(changed.sel(group="vision")) == (corruption != "question")


@pytest.mark.parametrize("corruption", ["image", "blank", "given"])
def test_a_video_is_corrupted_by_one_of_as_many_frames(corruption):
    subject = probe.load(*VIDEO_FAMILIES["internvl"]())
    lengths = (3, 4)
    samples = [
        Sample(
            str(number),
            clip(number, frames=lengths[number]),
            "what is red ?",
            answer="red circle",
            corrupted=clip(7, frames=5) if corruption == "given" else None,
        )
        for number in range(2)
    ]
    table = probe.patch_sweep(subject, samples, [1], corruption=corruption, progress=False)
    assert (table["clean"] != table["corrupted"]).all()


@pytest.mark.parametrize("change", CHANGES)
def test_drawn_pairs_differ_in_one_thing(change):
    for sample in scene_pairs(4, change):
        clean, corrupted = (np.asarray(i, dtype=int) for i in (sample.image, sample.corrupted))
        differ = (clean != corrupted).any(-1)
        assert 0 < differ.mean() < 0.2  # of nine cells, at most two and their borders
        assert sample.answer
    assert scene_pairs(1, change)[0].question == scene_pairs(2, change)[0].question


def test_mistakes_are_told():
    subject, sample = loaded("1.5"), pair()
    without = Sample("b", models.picture(0), "what?")
    for arguments, options, message in (
        ((subject, []), {}, "at least one sample"),
        ((subject, sample, [9]), {}, "layers from 0 to 2"),
        ((subject, sample, "some"), {}, "layers as numbers or all"),
        ((subject, sample, "all", "rows"), {}, "masks by name"),
        ((subject, sample, "all", {"a": np.ones(3, bool)}), {}, "a bool mask of"),
        ((subject, sample), {"direction": "back"}, "a direction of denoise, noise, both"),
        ((subject, sample), {"corruption": "dark"}, "a corruption of"),
        ((subject, without), {"corruption": "blank"}, "'b' without"),
        ((subject, without), {"corruption": "given"}, "none of 'b'"),
        ((subject, sample, "all", "types", "mlp", [0]), {}, "heads= with site='head'"),
    ):
        with pytest.raises(ProbeError, match=message):
            probe.patch_sweep(*arguments, **options, progress=False)
