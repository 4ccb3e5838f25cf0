import json
import re
import time
from pathlib import Path

import models
import pytest
import torch
import transformers
from golden_cases import COPIES
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

import probe
from probe.cli import options as cli_options
from probe.errors import ProbeError
from probe.measures.encoder_concentration import concentration
from probe.subject import attention_implementation, loading
from probe.subject.loading import load
from probe.subject.model_source import read_config


@pytest.fixture
def folder(tmp_path):
    model, processor = models.llava15()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_loaded_as_it_was_saved(folder):
    subject = load(str(folder))
    model, _ = models.llava15()
    inputs = subject.encode(models.picture(), "what?")
    with torch.no_grad():
        torch.testing.assert_close(
            subject.model(**inputs).logits, model(**inputs).logits, atol=0, rtol=0
        )
    assert not subject.model.training
    described = subject.provenance()
    expected = {
        "model": str(folder),
        "dtype": "float32",
        "attention": "sdpa",
        "device": "cpu",
        "aspect": "crop",
    }
    assert described | expected | {"quantization": "none", "toy": False} == described


def test_a_folder_may_be_a_path(folder):
    assert load(folder).provenance() == load(str(folder)).provenance()
    with pytest.raises(ProbeError, match="got 'nobody/nothing', which is none of these"):
        load(Path("nobody/nothing"))  # a Path is never a hub id


def test_the_revision_of_a_folder_follows_its_config(folder):
    before = load(str(folder)).revision
    assert before.startswith("config:") and before == read_config(str(folder))[1]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"note": "changed"}))
    assert load(str(folder)).revision != before


@pytest.fixture
def original(tmp_path):
    """LLaVA-Mini in its authors' layout, as a .bin file."""
    case = COPIES / "llava_mini" / "hd_c8_p1_vicuna"
    meta, tensors = (
        json.loads(case.with_suffix(".json").read_text()),
        load_file(case.with_suffix(".safetensors")),
    )
    weights = {
        name.removeprefix("weights."): t
        for name, t in tensors.items()
        if name.startswith("weights.")
    }
    folder = tmp_path / "original"
    (folder / "clip").mkdir(parents=True)
    (folder / "clip" / "config.json").write_text(json.dumps(meta["vision_config"]))
    (folder / "config.json").write_text(
        json.dumps(meta["config"] | {"mm_vision_tower": str(folder / "clip")})
    )
    torch.save(weights, folder / "pytorch_model.bin")
    models.llama_tokenizer().save_pretrained(folder)
    return folder


def test_the_authors_own_folder_is_loaded_as_it_is(original):
    subject = load(original, dtype="bf16", attn_implementation="eager")
    assert (
        type(subject.model).__name__ == "LlavaMiniForConditionalGeneration"
        and not subject.model.training
    )
    assert (subject.model.dtype, subject.provenance()["attention"]) == (torch.bfloat16, "eager")
    assert subject.processor.compressor_size == 8 and subject.processor.image_token_id == 128
    before = load(original).provenance()
    weights = torch.load(original / "pytorch_model.bin")
    torch.save(
        weights | {"lm_head.weight": weights["lm_head.weight"] + 1}, original / "pytorch_model.bin"
    )
    after = load(original).provenance()
    assert {name for name in after if after[name] != before[name]} == {"weights"}
    with pytest.raises(
        ProbeError,
        match=r"a folder in transformers' layout .*, got .*; probe convert .* --out NATIVE, then",
    ):
        load(original, quantization_config={"load_in_8bit": True})
    for file in original.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ProbeError, match="expected a processor with a tokenizer"):
        load(original)
    (original / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(
        ProbeError, match=r"load: expected a whole weight file, got pytorch_model.bin"
    ):
        load(original)


def test_the_authors_layout_on_the_hub_says_what_to_do(original, monkeypatch):
    monkeypatch.setattr(
        "probe.models.original.layouts.layout_of", lambda folder: None
    )  # as if it were not a folder
    with pytest.raises(ProbeError, match=r"hf download .* --local-dir FOLDER\) and load FOLDER"):
        load(original)


def test_dtype_and_attention_are_as_asked(folder):
    subject = load(str(folder), dtype="bf16", attn_implementation="eager")
    assert subject.provenance()["dtype"] == "bfloat16"
    assert subject.provenance()["attention"] == "eager"
    assert load(str(folder), dtype=torch.float16).model.dtype == torch.float16


def test_a_model_in_memory_is_changed_only_as_asked():
    model, processor = models.llava15()
    subject = load(model.train(), processor=processor, attn_implementation="eager", dtype="float32")
    assert subject.model is model
    assert not model.training
    assert subject.provenance()["attention"] == "eager"
    assert (subject.name, subject.revision) == ("LlavaForConditionalGeneration", "in memory")
    model.set_attn_implementation({"text_config": "sdpa"})
    assert subject.provenance()["attention"] == "vision eager, llm sdpa"


def test_what_old_processors_leave_out_comes_from_the_config_without_touching_them():
    model, processor = models.llava15()
    processor.patch_size = processor.vision_feature_select_strategy = None
    processor.num_additional_image_tokens = 0
    subject = load(model, processor=processor)
    assert subject.encode(models.picture(), "what?").types.vision.sum() == 16
    assert processor.patch_size is None


def test_a_processor_that_disagrees_with_the_model_is_named_with_numbers():
    model, processor = models.llava15()
    processor.num_additional_image_tokens = 0
    with pytest.raises(
        ProbeError, match=r"expected 16 placeholders, .* got 15; check its patch_size"
    ):
        load(model, processor=processor).encode(models.picture(), "what?")


def in_memory(model):
    return lambda tmp_path: load(model(), processor=models.llava15()[1])


def text_only():
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            vocab_size=9,
        )
    )


def compiled_in_place():
    model, _ = models.llava15()
    model.model.language_model.layers[0].compile()
    return model


def saved(model):
    def opened(tmp_path):
        model().save_pretrained(tmp_path)
        return load(str(tmp_path), processor=models.llava15()[1])

    return opened


def without(*names):
    def opened(tmp_path):
        model, processor = models.llava15()
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        for name in names:
            (tmp_path / name).unlink()
        return load(str(tmp_path))

    return opened


def cut_short(name):
    def opened(tmp_path):
        model, processor = models.llava15()
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
        return load(str(tmp_path))

    return opened


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (cut_short("model.safetensors"), "that transformers can load, got .* deserializing header"),
        (cut_short("tokenizer.json"), "expected a folder with a processor .*tokenizer.json., got"),
        (cut_short("config.json"), "that transformers can load"),
        (lambda path: load("a" * 300), "got 'aaa.*which is none of these"),
        (
            lambda path: load("tiny-llava", device="foo"),
            r"a device of this machine \(cpu.*\), got 'foo'",
        ),
        (
            lambda path: load("tiny-llava", device="cuda:99"),
            "a device of this machine .* got 'cuda:99'",
        ),
        (
            lambda path: load(*models.llava15(), device="xpu"),
            "a device of this machine .* got 'xpu'",
        ),
        (
            lambda path: load("tiny-llava", dtype=torch.int8),
            "expected a dtype of float32, .* got torch.int8",
        ),
        (
            lambda path: load("tiny-lava"),
            "expected tiny-llava, tiny-llava-mini, a folder, or .* got 'tiny-lava'",
        ),
        (lambda path: load("nobody/nothing-of-that-name"), "got 'nobody/nothing-of-that-name': "),
        (lambda path: load(str(path / "missing")), "got '.*missing', which is none of these"),
        (lambda path: load(str(path)), "expected a folder with config.json"),
        (without("model.safetensors"), "expected a checkpoint that transformers can load"),
        (
            without("tokenizer.json", "tokenizer_config.json"),
            "expected a folder with a processor .* pass processor=AutoProcessor",
        ),
        (saved(text_only), "expected a vision-language model, got '.*', a Llama$"),
        (in_memory(text_only), "names an image token, got LlamaForCausalLM without one"),
        (
            in_memory(lambda: nn.Linear(1, 1)),
            "expected a name or a transformers model, got a Linear",
        ),
        (
            in_memory(compiled_in_place),
            "not compiled, got a compiled LlavaForConditionalGeneration",
        ),
        (
            in_memory(lambda: torch.compile(models.llava15()[0])),
            "got a compiled LlavaForConditionalGeneration",
        ),
        (
            lambda path: load(models.llava15()[0]),
            "expected a processor .* got none; pass processor=",
        ),
        (
            lambda path: load(models.llava15()[0], processor=models.llama_tokenizer()),
            "image processor, got Tok",
        ),
        (
            lambda path: load("tiny-llava", dtype="int3"),
            "expected a dtype of float32, .* got 'int3'",
        ),
        (
            lambda path: load(*models.llava15(), quantization_config={"load_in_4bit": True}),
            "a name where quantization_config is given, got a model in memory",
        ),
        (
            lambda path: load(*models.llava15(), revision="main"),
            "a name where revision is given, got a model in memory",
        ),
        (
            lambda path: load("tiny-llava", device="cpu", device_map="auto"),
            "expected device= or device_map=, got both",
        ),
        (
            lambda path: load(*models.llava15(), attn_implementation="nonsense"),
            "expected an available attn_implementation .*sdpa.* got 'nonsense'",
        ),
        (
            lambda path: load(*models.llava15(), aspect="stretch"),
            "expected aspect=None or 'crop'.* got 'stretch'",
        ),
        (
            lambda path: load(*models.llava_next_vicuna(), aspect="pad"),
            "aspect=None or 'anyres'.* got 'pad'",
        ),
    ],
)
def test_mistakes_are_one_clear_line(mistake, message, tmp_path):
    with pytest.raises(ProbeError, match=message) as error:
        mistake(tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture
def from_pretrained(monkeypatch):
    """What `load` passes to AutoModelForImageTextToText.from_pretrained."""
    passed = {}
    model, _ = models.llava15()

    def record(name, **options):
        passed.update(options)
        return model, {"missing_keys": set(), "mismatched_keys": set(), "unexpected_keys": set()}

    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name, **options: model.config)
    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", record)
    return passed


def test_options_of_from_pretrained_are_passed_on(folder, from_pretrained):
    load(folder, revision="v2", device_map="auto", dtype="bf16", attn_implementation="eager")
    expected = {
        "revision": "v2",
        "device_map": "auto",
        "dtype": torch.bfloat16,
        "attn_implementation": "eager",
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        "quantization_config": None,
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": True,
    }
    assert from_pretrained == expected


def test_quantized_weights_are_loaded_on_the_device(folder, from_pretrained):
    load(folder, device="cpu", quantization_config={"load_in_4bit": True})
    assert from_pretrained["device_map"] == {"": torch.device("cpu")}
    assert from_pretrained["quantization_config"] == {"load_in_4bit": True}


def test_quantization_without_its_packages_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(cli_options, "find_spec", lambda name: None)
    with pytest.raises(
        ProbeError, match=r"got no bitsandbytes and no accelerate; pip install 'probe-llava\[quant"
    ):
        cli_options.quantization_config("4bit")


def test_the_command_lines_quantization(monkeypatch):
    monkeypatch.setattr(cli_options, "find_spec", lambda name: name)
    monkeypatch.setattr(transformers, "BitsAndBytesConfig", dict)  # the real one needs the package
    assert cli_options.quantization_config("4bit") == {
        "load_in_4bit": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }
    assert cli_options.quantization_config("8bit") == {"load_in_8bit": True}
    assert cli_options.quantization_config(None) is None


# Without a network, and what is not installed


@pytest.fixture
def unreachable(monkeypatch):
    """As on a machine without a network, where nothing says that it is offline."""

    def refuse(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("probe.subject.model_source.socket.create_connection", refuse)


def test_a_hub_id_without_network_is_one_line_at_once(unreachable):
    started = time.monotonic()
    with pytest.raises(ProbeError) as error:
        load("llava-hf/no-such-model-7b")
    assert time.monotonic() - started < 30  # the hub's library tries again for minutes
    expected = r"load: expected a model that is on this machine, as https://\S+ can't be reached, "
    assert re.match(
        expected + "got 'llava-hf/no-such-model-7b': not in its cache; go online", str(error.value)
    )
    with pytest.raises(ProbeError, match="can't be reached"):
        read_config("llava-hf/no-such-model-7b")


def test_a_model_in_the_cache_is_loaded_without_network(unreachable, from_pretrained):
    load("llava-hf/no-such-model-7b", processor=models.llava15()[1])
    assert from_pretrained["local_files_only"] is True


def test_the_hub_is_asked_where_it_can_be_reached(monkeypatch, from_pretrained):
    asked = []

    class Connection:
        def close(self):
            asked.append("closed")

    def connect(address, timeout):
        asked.append(address)
        return Connection()

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://mirror.example")
    monkeypatch.setattr("probe.subject.model_source.getproxies", dict)
    monkeypatch.setattr("probe.subject.model_source.socket.create_connection", connect)
    monkeypatch.setattr(
        "probe.subject.adapter_source.find_adapter_config_file",
        lambda name, local_files_only, **_: asked.append(local_files_only),
    )
    load("llava-hf/some-model-7b", processor=models.llava15()[1])
    assert from_pretrained["local_files_only"] is False
    assert asked == [("mirror.example", 443), "closed", False]
    proxies = {"https": "http://proxy.example:3128"}
    monkeypatch.setattr("probe.subject.model_source.getproxies", lambda: proxies)
    load("llava-hf/some-model-7b", processor=models.llava15()[1])
    assert asked[3] == ("proxy.example", 3128)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("xx", "got 'xx'$"),
        ("flex_attention", "got 'flex_attention', which needs a GPU"),
        ("flash_attention_2", "got 'flash_attention_2', which needs the package flash_attn$"),
        ("someone/kernel", "got 'someone/kernel', which needs the package kernels$"),
        ({"text_config": "xx"}, "got 'xx'$"),
    ],
)
def test_an_attention_that_is_not_installed_is_refused_before_loading(monkeypatch, name, reason):
    def no_loading(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(attention_implementation, "find_spec", lambda package: None)
    monkeypatch.setattr(loading.AutoProcessor, "from_pretrained", no_loading)
    with pytest.raises(ProbeError, match=rf"attn_implementation \(eager, sdpa\), {reason}"):
        load("tiny-llava", attn_implementation=name)


@pytest.mark.parametrize(
    "call",
    [
        lambda: probe.measure("tiny-llava", None, "what?"),
        lambda: probe.measure_samples("tiny-llava", [probe.Sample("0", None, "what?")]),
        lambda: probe.attribute("tiny-llava", models.picture(), "what?"),
        lambda: probe.logit_lens("tiny-llava", models.picture(), "what?"),
        lambda: probe.find_sinks("tiny-llava", models.picture(), "what?"),
        lambda: probe.deletion_curves("tiny-llava", models.picture(), "what?", {}),
        lambda: probe.verify("tiny-llava"),
        lambda: probe.drop_sweep("tiny-llava", [probe.Sample("0", None, "what?")], [{0}]),
        lambda: concentration("tiny-llava", models.picture()),
        lambda: probe.drop_vision("tiny-llava", [0]).__enter__(),
        lambda: probe.reduced("tiny-llava", probe.reducers.Random(2)).__enter__(),
    ],
)
def test_a_name_in_place_of_a_subject_is_one_line(unchecked, call):
    with pytest.raises(ProbeError, match=r"expected a .*Subject, got 'tiny-llava'"):
        call()


def test_a_model_in_place_of_a_subject_says_what_to_pass(unchecked):
    with pytest.raises(
        ProbeError, match=r"got a LlavaFor\w+; pass probe.load\(model, processor=processor\)"
    ):
        probe.measure(models.llava15()[0], None, "what?")


@pytest.mark.parametrize("tokens", ["3", 2.5, True, 0])
def test_a_number_of_tokens_that_is_none_is_one_line(unchecked, tokens):
    subject = load(*models.llava15())
    given, limit = (subject, models.picture(), "what?"), {"max_new_tokens": tokens}
    sample = probe.Sample("0", models.picture(), "what?")
    for call in (
        lambda: subject.answer(models.picture(), "what?", tokens),
        lambda: probe.attribute(*given, **limit),
        lambda: probe.logit_lens(*given, **limit),
        lambda: probe.find_sinks(*given, **limit),
        lambda: probe.drop_sweep(subject, [sample], [{0}], progress=False, **limit),
        lambda: probe.measure(*given, **limit) if tokens != 0 else load("nothing"),
    ):
        with pytest.raises(ProbeError):
            call()


def test_special_tokens_in_a_question_are_refused():
    subject = load(*models.llava15())
    with pytest.raises(
        ProbeError, match=r"question: expected words without </s>, .* got 'a </s> b'"
    ):
        subject.encode(models.picture(), "a </s> b")
    subject.encode(models.picture(), "a < /s> b")
    asked = [{"role": "system", "content": "be <s> brief"}, {"role": "user", "content": "a"}]
    with pytest.raises(ProbeError, match="without <s>"):
        subject.encode(None, asked)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("device", 10**30, "expected a device of this machine"),
        ("device", -1, "expected a device of this machine"),
        ("attn_implementation", [1], "expected an available attn_implementation"),
        ("attn_implementation", {"": 3}, "expected an available attn_implementation"),
        ("dtype", float("nan"), "expected a dtype of"),
    ],
)
def test_options_of_another_type_are_one_line(unchecked, option, value, told):
    model, processor = models.llava15()
    with pytest.raises(ProbeError, match=f"^load: {told}"):
        load(model, processor=processor, **{option: value})
