"""From the authors' checkpoint to ours: names, shards, what is missing, and nothing written when something is."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from probe.models.llava_mini import (
    LlavaMiniConfig,
    LlavaMiniForConditionalGeneration,
    convert,
    from_original,
    load_original,
)
from probe.models.llava_mini.conversion import check, fitted, native_config, renamed

SHARED = Path(os.environ.get("PROBE_GOLDEN", Path(__file__).parents[2] / "shared" / "golden")) / "llava_mini"
CASE = Path(__file__).parent / "golden" / "llava_mini" / "hd_c8_p1_vicuna.json"
VISION = "model.vision_tower."


@pytest.fixture(scope="module")
def case():
    """The authors' config, the vision tower's config and the weights of a small case."""
    meta = json.loads(CASE.read_text())
    tensors = load_file(CASE.with_suffix(".safetensors"))
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    return meta["config"], meta["vision_config"], weights


@pytest.fixture
def folder(case, tmp_path):
    """An authors' folder of two safetensors shards, and the vision tower's folder it names."""
    return write(case, tmp_path / "original")


def write(case, path, binary=False, vision=True):
    config, vision_config, weights = case
    (path / "clip").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config | {"mm_vision_tower": str(path / "clip")}))
    (path / "clip" / "config.json").write_text(json.dumps({"vision_config": vision_config}))
    clip = {name.replace("model.vision_tower.vision_tower.", ""): t for name, t in weights.items() if VISION in name}
    save_file(clip | {"text_model.x": torch.zeros(1)}, path / "clip" / "model.safetensors")
    own = {name: t for name, t in weights.items() if vision or VISION not in name}
    names, suffix = list(own), "bin" if binary else "safetensors"
    stem, index = ("pytorch_model", "pytorch_model.bin") if binary else ("model", "model.safetensors")
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"{stem}-{i:05}-of-00002.{suffix}"
        tensors = {name: own[name] for name in part}
        torch.save(tensors, path / shard) if binary else save_file(tensors, path / shard)
        weight_map |= dict.fromkeys(part, shard)
    (path / f"{index}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def same(model, other):
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("vision", [False, True])
def test_convert_equals_the_checkpoint_in_memory(case, tmp_path, binary, vision):
    path = write(case, tmp_path / "original", binary, vision)
    expected = from_original(case[2], case[0], case[1])
    native = AutoModelForImageTextToText.from_pretrained(convert(path, tmp_path / "native"))
    assert type(native) is LlavaMiniForConditionalGeneration and same(native, expected)
    loaded, processor = load_original(path)
    assert same(loaded, expected) and processor is None  # no tokenizer there
    assert not list(tmp_path.glob(".native*"))


def test_round_trip(case, tmp_path):
    model = from_original(case[2], case[0], case[1])
    model.save_pretrained(tmp_path)
    assert same(AutoModelForImageTextToText.from_pretrained(tmp_path), model)


def test_adapter_only_on_top_of_its_llm(case, tmp_path):
    path, base = write(case, tmp_path / "original"), tmp_path / "llm"
    for file in path.glob("model*"):
        file.unlink()
    base.mkdir()
    own = [name for name in case[2] if any(part in name for part in ("mm_projector", "compressor", "prefusion"))]
    torch.save({f"base_model.{name}": case[2][name] for name in own}, path / "mm_projector.bin")
    save_file({n: t for n, t in case[2].items() if n not in own and VISION not in n}, base / "model.safetensors")
    loaded, _ = load_original(path, base=base)
    assert same(loaded, from_original(case[2], case[0], case[1]))
    with pytest.raises(ValueError, match=r"missing: .*embed_tokens"):
        load_original(path)


def test_every_misfit_is_named_and_nothing_is_written(folder, case, tmp_path):
    shard = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    tensors["model.strange"] = torch.zeros(1)
    tensors["model.embed_tokens.weight"] = torch.zeros(3, 48)
    del tensors[next(name for name in tensors if "mlp" in name)]
    save_file(tensors, shard)
    with pytest.raises(
        ValueError, match=r"1 missing: .*1 surplus: model.strange.*1 misshapen: .*embed_tokens"
    ) as error:
        convert(folder, tmp_path / "native")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("*native*"))


def damage_truncated(folder):
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def damage_index(folder):
    (folder / "model.safetensors.index.json").unlink()


def damage_shard(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def damage_width(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


def damage_config(folder):
    (folder / "config.json").write_text("{")


def damage_projector(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_projector_type": "linear"}))


@pytest.mark.parametrize(("damage", "told"), [
    (damage_truncated, "model-00002-of-00002.safetensors"), (damage_index, "expected an index file"),
    (damage_shard, "got no model-00002"), (damage_width, "misshapen"), (damage_config, "readable config.json"),
    (damage_projector, "mm_projector_type"),
])  # fmt: skip
def test_a_damaged_folder_is_one_line(folder, tmp_path, damage, told):
    damage(folder)
    with pytest.raises(ValueError, match=told) as error:
        convert(folder, tmp_path / "native")
    assert "\n" not in str(error.value) and not (tmp_path / "native").exists()


def test_a_truncated_bin_file_is_one_line(case, tmp_path):
    folder = write(case, tmp_path / "original", binary=True)
    shard = folder / "pytorch_model-00001-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match="pytorch_model-00001") as error:
        convert(folder, tmp_path / "native")
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_vision_tower_says_what_to_give(case):
    weights = {name: t for name, t in case[2].items() if VISION not in name}
    with pytest.raises(ValueError, match="vision_tower="):
        from_original(weights, case[0], case[1])
    clip = {name.replace("model.vision_tower.vision_tower.", ""): t for name, t in case[2].items() if VISION in name}
    assert same(from_original(weights, case[0], case[1], clip), from_original(case[2], case[0], case[1]))


def test_the_full_size_layout_maps_completely():
    path = SHARED / "full_layout_llama31_8b.json"
    if not path.exists():
        pytest.skip("the project's shared folder is not here")
    keys = json.loads(path.read_text())["keys"]
    config = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 8, "vocab_size": 128256, "compressor_size": 1, "prefusion_layer_num": 4,
              "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}  # fmt: skip
    clip = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 336, "patch_size": 14}  # fmt: skip
    with torch.device("meta"):
        model = LlavaMiniForConditionalGeneration(native_config(config, clip))
    ours = {}
    for name, shape in keys.items():
        ours |= renamed(name, torch.empty(shape, device="meta"))
    check({name: tensor.shape for name, tensor in fitted(ours, model).items()}, model)
    assert sum(tensor.numel() for tensor in ours.values()) == 9231400960
    assert model.config.image_token_id == 128256


def test_config_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="without hidden_size"):
        native_config({}, {})
    with pytest.raises(ValueError, match="at least 0"):
        LlavaMiniConfig(compressor_size=-1)
