"""Checkpoints that are not whole, and weights in other files than safetensors: each works, or is
one line.
"""

import json

import models
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from probe.errors import ProbeError
from probe.subject.config_parts import require_parts
from probe.subject.loading import load

LAST = "language_model.model.norm.weight"


@pytest.fixture
def folder(tmp_path):
    model, processor = models.llava15()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path


def test_shards_are_one_model(folder, tmp_path_factory):
    sharded = tmp_path_factory.mktemp("sharded")
    model, processor = models.llava15()
    model.save_pretrained(sharded, max_shard_size="100KB")
    assert len([*sharded.glob("*.safetensors")]) > 1
    of_both = [load(each, processor).provenance()["weights"] for each in (sharded, folder)]
    assert of_both[0] == of_both[1]


class Code:
    """What a pickle may hold beside tensors."""

    def __reduce__(self):
        return pytest.fail, ("the code of a checkpoint ran",)


def test_pickled_weights_are_read_as_tensors_alone(folder):
    expected = load(folder).provenance()["weights"]
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert load(folder).provenance()["weights"] == expected
    torch.save(weights | {"code": Code()}, folder / "pytorch_model.bin")
    with pytest.raises(ProbeError, match=r"a checkpoint that transformers can load, got .*eights"):
        load(folder)


def drop(weights):
    del weights[LAST]


def shorten(weights):
    weights[LAST] = weights[LAST][:3]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop, r"without 1 of them, such as .*norm.weight; save it whole"),
        (shorten, r"where .*norm.weight is \(3,\) and not \(48,\); save it whole"),
    ],
)
def test_weights_that_transformers_would_make_up_are_refused(folder, change, told):
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ProbeError, match=told):
        load(folder)


def test_weights_that_are_nowhere_are_refused():
    model, processor = models.llava15()
    with pytest.raises(ProbeError, match=r"got \d+ weights on the device meta, such as model"):
        load(model.to("meta"), processor)


def test_meta_is_not_a_device_to_load_to():
    with pytest.raises(ProbeError, match=r"a device of this machine \(cpu.*got 'meta'"):
        load("tiny-llava", device="meta")


def test_code_of_a_checkpoint_is_not_run(folder):
    own = {"AutoConfig": "mine.Config", "AutoModelForImageTextToText": "mine.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": own}))
    (folder / "mine.py").write_text("raise SystemExit('the code of a checkpoint ran')")
    with pytest.raises(ProbeError, match=r"whose code is part of transformers, got .* yourself"):
        load(folder)


def configured(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("text_config"),
        lambda config: config.update(text_config={}),
        lambda config: config.update(text_config=None),
    ],
    ids=["without", "empty", "null"],
)
def test_a_config_without_its_llm_is_refused_before_one_of_seven_billion_is_made(folder, change):
    configured(folder, change)
    expected = (
        r"a config.json with text_config, for [\d,]+ stored .* a model of 6,[\d,]+ by default"
    )
    with pytest.raises(ProbeError, match=expected):
        load(folder)


def test_what_can_t_be_compared_is_left_to_transformers(folder):
    """Packed weights, which are fewer numbers than the model has, are not compared."""
    configured(folder, lambda config: config.pop("text_config"))
    read = AutoConfig.from_pretrained(folder)
    with pytest.raises(ProbeError, match="text_config"):
        require_parts(folder, read)
    read.quantization_config = {"quant_method": "bitsandbytes"}
    require_parts(folder, read)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    del read.quantization_config
    require_parts(folder, read)  # no weights to compare with: transformers says what is missing


def test_layers_that_a_config_leaves_out_are_said(folder):
    whole = load(folder)
    depth = whole.model.config.text_config.num_hidden_layers
    configured(folder, lambda config: config["text_config"].update(num_hidden_layers=depth - 1))
    said = rf"language_model.layers the model has the first {depth - 1}, and not {depth - 1} "
    with pytest.warns(UserWarning, match=said):
        load(folder)
