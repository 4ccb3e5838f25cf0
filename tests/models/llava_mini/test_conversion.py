"""From the authors' checkpoint to ours: names, shards, what is missing, and nothing written when
something is.
"""

import gc
import json
import warnings
from pathlib import Path

import pytest
import torch
from golden_cases import COPIES
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from probe.models.llava_mini import (
    CheckpointError,
    LlavaMiniConfig,
    LlavaMiniForConditionalGeneration,
    convert,
    from_original,
    load_original,
    original_format,
)
from probe.models.llava_mini.original_format import native_config
from probe.models.original.llava_names import CLIP_L_336
from probe.models.original.shapes import check_shapes

GOLDEN = COPIES / "llava_mini"
CASE = GOLDEN / "hd_c8_p1_vicuna.json"
LAYOUT = (
    GOLDEN / "full_layout_llama31_8b.json"
)  # names of all layers together: [how many layers, shape]
VISION = "model.vision_tower."


@pytest.fixture(scope="module")
def case():
    """The authors' config, the vision tower's config and the weights of a small case."""
    meta = json.loads(CASE.read_text())
    tensors = load_file(CASE.with_suffix(".safetensors"))
    weights = {
        name.removeprefix("weights."): t
        for name, t in tensors.items()
        if name.startswith("weights.")
    }
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
    clip = {
        name.replace("model.vision_tower.vision_tower.", ""): t
        for name, t in weights.items()
        if VISION in name
    }
    save_file(clip | {"text_model.x": torch.zeros(1)}, path / "clip" / "model.safetensors")
    own = {name: t for name, t in weights.items() if vision or VISION not in name}
    names, suffix = list(own), "bin" if binary else "safetensors"
    stem, index = (
        ("pytorch_model", "pytorch_model.bin") if binary else ("model", "model.safetensors")
    )
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
    own = [
        name
        for name in case[2]
        if any(part in name for part in ("mm_projector", "compressor", "prefusion"))
    ]
    torch.save({f"base_model.{name}": case[2][name] for name in own}, path / "mm_projector.bin")
    save_file(
        {n: t for n, t in case[2].items() if n not in own and VISION not in n},
        base / "model.safetensors",
    )
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


def test_never_more_than_one_shard_is_in_memory(case, tmp_path, monkeypatch):
    path = write(case, tmp_path / "original")
    largest = max(file.stat().st_size for file in path.glob("*.safetensors"))
    assert sum(tensor.nbytes for tensor in case[2].values()) > 1.5 * largest
    alive = []

    def save(tensors, *args, **kwargs):
        alive.append(tensor_memory() - before)
        save_file(tensors, *args, **kwargs)

    monkeypatch.setattr("probe.models.original.folder.save_file", save)
    before = tensor_memory()
    convert(path, tmp_path / "native")
    packed = sum(
        t.nbytes for name, t in case[2].items() if "in_proj" in name
    )  # q, k and v come apart as copies
    assert len(alive) == 2 and max(alive) <= largest + packed


def tensor_memory():
    """Bytes of all tensors that are alive, whoever holds them."""
    gc.collect()
    with warnings.catch_warnings(action="ignore"):  # some modules warn when they are looked at
        storages = [
            x.untyped_storage()
            for x in gc.get_objects()
            if isinstance(x, torch.Tensor) and not x.is_meta
        ]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def truncated(folder):
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def without(name):
    return lambda folder: (folder / name).unlink()


def with_text(name, text):
    return lambda folder: (folder / name).write_text(text)


def with_config(**fields):
    return lambda folder: edit(folder / "config.json", **fields)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncated, r"whole weight file, got model-00002-of-00002.safetensors \(.*incomplete"),
        (
            without(INDEX),
            "expected an index file .* beside model-00001-of-00002.safetensors, got none",
        ),
        (
            without("model-00002-of-00002.safetensors"),
            f"files that {INDEX} lists, got no model-00002",
        ),
        (with_text(INDEX, '{"weight_map": 3}'), f"a weight_map in {INDEX}, got none"),
        (with_text(INDEX, "[1]"), f"readable {INDEX} in .*, got a list"),
        (with_text("config.json", "{"), "readable config.json in .*, got Expecting property name"),
        (without("config.json"), "readable config.json in .*, got No such file"),
        (with_config(hidden_size=64), r"misshapen: .*norm.weight \[48\] instead of \[64\]"),
        (
            with_config(hidden_size=50),
            "got .*hidden size .50. is not a multiple of the number of attention heads",
        ),
        (
            with_config(hidden_size="x"),
            "config fields that a LLaVA-Mini can be built of, got .*'hidden_size' expected int",
        ),
        (with_config(num_attention_heads=0), "can be built of, got .*zero"),
        (with_config(rope_scaling={"type": "strange"}), "can be built of, got 'strange'"),
        (
            with_config(compressor_size=None),
            "can be built of, got .*'compressor_size' expected int",
        ),
        (
            with_config(mm_projector_type="linear"),
            "mm_projector_type to be 'mlp2x_gelu', got 'linear'",
        ),
        (
            with_config(mm_vision_tower="some/clip"),
            r"only its name 'some/clip'; give it \(vision= or --vision\)",
        ),
        (
            with_config(mm_vision_tower="openai/clip-vit-large-patch14-336"),
            r"missing: .*layers.{3-23}.mlp.fc1.weight, .*",
        ),
        (with_text("tokenizer.json", "{"), "a tokenizer that transformers can load in"),
    ],
)
def test_a_damaged_folder_is_one_line(folder, tmp_path, damage, told):
    damage(folder)
    with pytest.raises(CheckpointError, match=told) as error:
        convert(folder, tmp_path / "native")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("*native*"))


def test_a_bin_file_of_more_than_tensors_is_not_run(case, tmp_path):
    folder = write(case, tmp_path / "original", binary=True)
    shard = folder / "pytorch_model-00001-of-00002.bin"
    for content, told in [
        ({"model.x": Path("/")}, "no code of a checkpoint is run"),
        ([torch.zeros(1)], "by name"),
    ]:
        torch.save(content, shard)
        with pytest.raises(CheckpointError, match=told) as error:
            convert(folder, tmp_path / "native")
        assert "\n" not in str(error.value) and not (tmp_path / "native").exists()


def test_bin_files_of_old_torch(case, tmp_path):
    folder = write(case, tmp_path / "original", binary=True)
    for file in folder.glob("*.bin"):
        torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    assert same(load_original(folder)[0], from_original(case[2], case[0], case[1]))


def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("probe.models.original.folder.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        convert(folder, tmp_path / "native")
    assert not list(tmp_path.glob("*native*"))


def test_a_truncated_bin_file_is_one_line(case, tmp_path):
    folder = write(case, tmp_path / "original", binary=True)
    shard = folder / "pytorch_model-00001-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match="pytorch_model-00001") as error:
        convert(folder, tmp_path / "native")
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_vision_tower_says_what_to_give(case):
    weights = {name: t for name, t in case[2].items() if VISION not in name}
    with pytest.raises(ValueError, match="vision= or --vision"):
        from_original(weights, case[0], case[1])
    clip = {
        name.replace("model.vision_tower.vision_tower.", ""): t
        for name, t in case[2].items()
        if VISION in name
    }
    assert same(
        from_original(weights, case[0], case[1], clip), from_original(case[2], case[0], case[1])
    )


def released_layout():
    """Name -> shape of the 9.2 billion parameters of the released model. Source: the authors'
    class, built on meta.
    """
    layers = json.loads(LAYOUT.read_text())
    return {name.format(i): shape for name, (count, shape) in layers.items() for i in range(count)}


def test_the_released_layout_maps_completely():
    keys = released_layout()
    assert len(keys) == 732
    config = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "compressor_size": 1,
        "prefusion_layer_num": 4,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    }
    layout = original_format.LAYOUT
    model = layout.empty_model(native_config(config, CLIP_L_336), torch.bfloat16, device="meta")
    theirs = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
    ours = layout.native(theirs, model)
    check_shapes({name: tensor.shape for name, tensor in ours.items()}, model)
    assert (
        sum(tensor.numel() for tensor in ours.values())
        == 9231400960
        == sum(p.numel() for p in model.parameters())
    )
    assert model.config.image_token_id == 128256
    del ours["model.language_model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing: model.language_model.norm.weight$"):
        check_shapes({name: tensor.shape for name, tensor in ours.items()}, model)


def test_pre_fusion_has_four_layers_where_the_config_is_silent(case):
    config = {name: value for name, value in case[0].items() if name != "prefusion_layer_num"}
    assert native_config(config, case[1]).num_prefusion_layers == 4


def test_config_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="without hidden_size"):
        native_config({}, {})
    with pytest.raises(ValueError, match="at least 0"):
        LlavaMiniConfig(compressor_size=-1)
