"""Adapters as peft saves and wraps them. Where peft is not installed, that is what is said."""

import importlib.util
import json
import shutil
from types import SimpleNamespace

import models
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import probe
from probe.errors import ProbeError
from probe.measures.cost import cost

ASKED = models.picture(0), "what is it?", "a red circle"
HAS_PEFT = importlib.util.find_spec("peft") is not None
with_peft = pytest.mark.skipif(not HAS_PEFT, reason="peft is not installed")
PROJECTIONS = ["q_proj", "v_proj", "o_proj", "linear_1"]


def logits(subject):
    with torch.no_grad():
        return subject.model(**subject.encode(*ASKED)).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model, processor = models.llava15()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def wrapped(base, **options):
    import peft

    model = AutoModelForImageTextToText.from_pretrained(base).eval()
    kind = options.pop("kind", "LoraConfig")
    if kind == "LoraConfig":
        options = {"r": 2, "target_modules": PROJECTIONS, "init_lora_weights": False} | options
    torch.manual_seed(0)
    return peft.get_peft_model(model, getattr(peft, kind)(**options)).eval()


def saved(model, folder):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name or "ia3" in name:  # as training leaves them
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(folder)
    return folder


IA3 = {"kind": "IA3Config", "target_modules": ["v_proj"], "feedforward_modules": []}


@with_peft
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, IA3], ids=["LoRA", "DoRA", "IA3"])
def test_a_folder_of_an_adapter_is_its_model_with_the_adapter(base, tmp_path, options):
    model = wrapped(base, **options)
    folder = saved(model, tmp_path / "adapter")
    expected = logits(probe.load(model, processor=probe.load(base).processor))
    subject = probe.load(folder)
    assert torch.equal(logits(subject), expected)
    assert not torch.allclose(logits(probe.load(base)), expected, atol=1e-2), "the adapter acts"
    of_record = subject.provenance()
    assert of_record["adapters"] == "default" and of_record["model"] == str(folder)
    assert of_record["revision"].count("config:") == 2, "the adapter's and its model's"
    assert probe.verify(subject, *ASKED[:2]).passed


@with_peft
def test_an_adapter_that_lies_beside_its_model_has_its_own_values(base, tmp_path):
    model = wrapped(base, use_dora=True)
    folder = saved(model, tmp_path / "both")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    subject = probe.load(folder)
    assert torch.equal(logits(subject), logits(probe.load(model, subject.processor)))


@with_peft
def test_names_of_older_versions_of_transformers_find_their_place(base, tmp_path):
    model = wrapped(base)
    folder = saved(model, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    older = {
        name.replace("model.model.language_model.", "model.language_model.model."): value
        for name, value in load_file(file).items()
    }
    assert older.keys() != load_file(file).keys()
    save_file(older, file)
    subject = probe.load(folder)
    assert torch.equal(logits(subject), logits(probe.load(model, subject.processor)))


def broken(folder, change):
    """A copy of an adapter's folder with another config or other weights."""
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.copytree(folder, copy)
    if callable(change):
        file = copy / "adapter_model.safetensors"
        weights = load_file(file)
        change(weights)
        save_file(weights, file)
        return copy
    config = copy / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    return copy


def drop_one(weights):
    del weights[next(iter(weights))]


def rename_one(weights):
    name = next(iter(weights))
    weights[f"elsewhere.{name}"] = weights.pop(name)


@with_peft
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop_one, "whose weights fit its model, got .*: 1 without a counterpart, such as base_"),
        (rename_one, "whose weights fit its model, got .*: 2 without a counterpart"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path=None in adapter_config"),
        ({"base_model_name_or_path": "/no/such"}, "which is none of these .the base model of the"),
        ({"base_model_name_or_path": "tiny-llava"}, "an adapter that peft can load, .*mismatch"),
        ({"peft_type": "MAGIC"}, "an adapter that peft can load, got .*MAGIC"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(base, tmp_path, change, told):
    folder = broken(saved(wrapped(base), tmp_path / "adapter"), change)
    with pytest.raises(ProbeError, match=told) as error:
        probe.load(folder)
    assert "\n" not in str(error.value)


@with_peft
def test_an_adapter_of_an_adapter_is_refused(base, tmp_path):
    folder = saved(wrapped(base), tmp_path / "adapter")
    above = broken(folder, {"base_model_name_or_path": str(folder)})
    with pytest.raises(ProbeError, match=r"expected a whole model, got .*, an adapter"):
        probe.load(above)


@with_peft
def test_peft_s_wrapper_is_taken_off(base):
    model = wrapped(base)
    subject = probe.load(model, processor=models.llava15()[1])
    assert subject.model is model.get_base_model()
    with torch.no_grad():
        inputs = subject.encode(*ASKED)
        assert torch.equal(model(**inputs).logits, subject.model(**inputs).logits)
    model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    assert subject.provenance()["adapters"] == "second"


@with_peft
def test_what_acts_in_the_wrapper_alone_is_refused(base):
    _, processor = models.llava15()
    sizes = {"token_dim": 32, "num_layers": 3, "num_attention_heads": 4}
    prompt = {"kind": "PromptTuningConfig", "num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
    with pytest.raises(ProbeError, match="PROMPT_TUNING, which puts virtual tokens before the"):
        probe.load(wrapped(base, **prompt, **sizes), processor=processor)
    later = wrapped(base, alora_invocation_tokens=[5], task_type="CAUSAL_LM")
    for model in (later, later.get_base_model()):
        with pytest.raises(ProbeError, match="which acts from certain words of a prompt on"):
            probe.load(model, processor=processor)


def test_the_kind_of_an_adapter_is_asked_of_its_config():
    """Also without peft: what its wrapper tells."""
    model, processor = models.llava15()
    wrapper = torch.nn.Module()
    wrapper.get_base_model = lambda: model
    wrapper.active_adapters = ["soft"]
    soft = SimpleNamespace(peft_type="P_TUNING", is_prompt_learning=True)
    wrapper.peft_config = {"soft": soft}
    with pytest.raises(ProbeError, match="one of kind P_TUNING, which puts virtual tokens"):
        probe.load(wrapper, processor=processor)
    soft.is_prompt_learning = False
    assert probe.load(wrapper, processor=processor).model is model


def test_an_adapter_without_peft_is_one_line(tmp_path, monkeypatch):
    config = {"peft_type": "LORA", "base_model_name_or_path": "tiny-llava"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("probe.subject.adapter_source.find_spec", lambda name: None)
    told = r"the package peft, .* got '.*', an adapter of 'tiny-llava', without it; pip install"
    with pytest.raises(ProbeError, match=told):
        probe.load(tmp_path)
    with pytest.raises(ProbeError, match=r"a folder with config.json, got .*, an adapter's"):
        cost(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ProbeError, match=r"adapter_config.json is no JSON object"):
        probe.load(tmp_path)
