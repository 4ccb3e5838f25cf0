"""The authors' folders: loaded, converted and saved, in every form that weights come in."""

import json

import pytest
import rival_models
import torch
from PIL import Image

import probe
from probe.models.original import CheckpointError, convert, load_original
from probe.models.original.layouts import layout_of

IMAGE = Image.effect_noise((60, 40), 80).convert("RGB")
KINDS = ("llama_vid_mean", "mqt_few", "tokenpacker", "voco", "llama_vid_clip")


@torch.no_grad()
def logits(subject):
    """Of a prompt with an image."""
    return subject.model(**subject.encode(IMAGE, "what is red?")).logits


def close(found, expected):
    """Up to rounding: weights of another file lie differently in memory."""
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name", [KINDS[0], *(pytest.param(name, marks=pytest.mark.wide) for name in KINDS[1:])]
)
def test_a_folder_is_loaded_converted_and_saved(name, tmp_path):
    """One file of safetensors, .bin files by an index, the converted folder and one that is saved
    again: the same numbers.
    """
    plain = rival_models.folder(name, tmp_path / "plain")
    shards = rival_models.folder(name, tmp_path / "shards", safetensors=False, shards=2)
    first = probe.load(plain)
    expected = logits(first)
    close(logits(probe.load(shards)), expected)
    convert(shards, tmp_path / "native")
    native = probe.load(tmp_path / "native")
    assert type(native.model) is type(first.model) and not native.model.training
    close(logits(native), expected)
    native.model.save_pretrained(tmp_path / "again")
    native.processor.save_pretrained(tmp_path / "again")
    again = probe.load(tmp_path / "again", attn_implementation="eager")
    close(logits(again), expected)
    assert again.answer(IMAGE, "what is red?", max_new_tokens=3) == first.answer(
        IMAGE, "what is red?", max_new_tokens=3
    )


def test_the_tower_may_be_in_a_file_of_its_own(tmp_path):
    """As EVA's is, under names without a prefix."""
    path = rival_models.folder("llama_vid_mean", tmp_path / "whole")
    expected, _ = load_original(path)
    _, _, weights = rival_models.original("llama_vid_mean")
    prefix = "model.vision_tower.vision_tower."
    tower = {name.removeprefix(prefix): x for name, x in weights.items() if prefix in name}
    torch.save(tower, path / "tower" / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    whole = {name: x for name, x in weights.items() if prefix not in name}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        whole[name] = expected.state_dict()[
            name.replace("model.embed", "model.language_model.embed")
        ]
    torch.save(whole, path / "pytorch_model.bin")
    found, _ = load_original(path)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]), name


def test_what_a_folder_is_follows_from_its_tensors(tmp_path):
    for name in ("mqt", "tokenpacker", "voco", "llama_vid"):
        path = rival_models.folder(name, tmp_path / name)
        found = layout_of(path)
        assert found is not None and found.model is type(rival_models.subject(name).model)
    settings = json.loads((path / "config.json").read_text())
    del settings["mm_vision_tower"]
    (path / "config.json").write_text(json.dumps(settings))
    assert layout_of(path) is None


def test_a_folder_that_is_not_whole_is_named(tmp_path):
    path = rival_models.folder("mqt", tmp_path / "mqt")
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 3}))
    with pytest.raises(probe.ProbeError, match=r"load: .* missing: model.language_model.layers.2"):
        probe.load(path)
    (path / "config.json").write_text(json.dumps(settings | {"mm_vision_tower": "unknown/tower"}))
    with pytest.raises(CheckpointError, match="only its name 'unknown/tower'; give it"):
        convert(path, tmp_path / "native")
    assert not (tmp_path / "native").exists()
    path = rival_models.folder("llama_vid_mean", tmp_path / "vid")
    for file in (path / "bert-base-uncased").iterdir():
        file.unlink()
    (path / "bert-base-uncased").rmdir()
    with pytest.raises(probe.ProbeError, match="BERT's tokenizer in the folder bert-base-uncased"):
        probe.load(path)
