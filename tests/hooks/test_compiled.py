"""Compiled parts are refused wherever they hide; no block that changed nothing ends in silence."""

import functools
import warnings

import models
import pytest
import torch
from llava_mini_models import build, ids, pixels
from prompts import six_layers

import probe
from probe.errors import ProbeError
from probe.hooks.compiled import compiled_part
from probe.interventions import drop_vision, knockout, swap_vision
from probe.reducers import FastV, VisionZip


class Wrapper:
    """An object that is called in place of a function."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


WRAPPERS = {
    "itself": lambda forward: forward,
    "a partial": lambda forward: functools.partial(forward),
    "a closure": lambda forward: lambda *args, **kwargs: forward(*args, **kwargs),
    "a decorator": lambda forward: functools.wraps(forward)(lambda *args: forward(*args)),
    "an object": Wrapper,
}
LAYER = "model.language_model.layers.1"
PARTS = ["", "model", "model.language_model", LAYER, f"{LAYER}.self_attn", "model.vision_tower"]


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("name", PARTS)
def test_a_compiled_forward_is_found(name, wrap):
    model, processor = models.llava15()
    subject = probe.load(model, processor=processor)
    part = model.get_submodule(name)
    part.forward = wrap(torch.compile(part.forward))
    assert compiled_part(model) == name
    for block in (lambda: drop_vision(model, [1]), lambda: FastV(1, 0.5)(model)):
        with pytest.raises(ProbeError, match="not compiled"), block():
            pass
    with pytest.raises(ProbeError, match="not compiled"):
        probe.measure(subject, models.picture(0), "what is it?")
    with pytest.raises(ProbeError, match="not compiled"):
        probe.load(model, processor=processor)


def test_what_is_not_compiled_passes():
    model, _ = models.llava15()
    model.forward = torch.compiler.disable(model.forward)
    layer = model.model.language_model.layers[0]
    layer.forward = functools.partial(layer.forward)
    assert compiled_part(model) is None
    with drop_vision(model, [1]):
        assert compiled_part(model) is None, "our own hooks are no compilation"


def test_a_forward_of_the_class_is_found(monkeypatch):
    model, _ = models.llava15()
    kind = type(model.model.language_model.layers[0])
    monkeypatch.setattr(kind, "forward", torch.compile(kind.forward))
    assert compiled_part(model) == "model.language_model.layers.0"


BLOCKS = {
    "mask": lambda subject: drop_vision(subject, [2], "mask"),
    "zero": lambda subject: drop_vision(subject, [2], "zero"),
    "remove": lambda subject: drop_vision(subject, [2], "remove"),
    "knockout": lambda subject: knockout(subject, "text", "vision", [2]),
    "fastv": lambda subject: FastV(2, 0.5)(subject),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@torch.no_grad()
def test_layers_that_ran_without_their_hooks_raise(block, monkeypatch):
    """As if a graph had been recorded before the block: nothing in it calls a hook."""
    subject = six_layers()
    inputs = subject.encode(models.picture(0), "what is it?")
    decoder = subject.model.get_decoder()
    for layer in decoder.layers:
        monkeypatch.setattr(layer, "_call_impl", layer.forward)
    with pytest.raises(ProbeError, match="nothing was changed"), block(subject):
        subject.model(**inputs)


ONE_LAYER = {
    "mask": "none in layer 2",
    "zero": "none in layer 2",
    "remove": "no call of layer 2",
    "knockout": "none in layer 2",
    "fastv": "no call of layer 2",
}


@pytest.mark.parametrize("name", ONE_LAYER)
@torch.no_grad()
def test_one_layer_that_ran_without_its_hooks_raises(name, monkeypatch):
    """The one that the block is about; all others call theirs."""
    subject = six_layers()
    inputs = subject.encode(models.picture(0), "what is it?")
    layer = subject.model.get_decoder().layers[2]
    monkeypatch.setattr(layer, "_call_impl", layer.forward)
    monkeypatch.setattr(layer.self_attn, "_call_impl", layer.self_attn.forward)
    with pytest.raises(ProbeError, match=ONE_LAYER[name]), BLOCKS[name](subject):
        subject.model(**inputs)


@torch.no_grad()
def test_attention_that_ranks_tokens_and_ran_without_its_hooks_raises(monkeypatch):
    subject = six_layers()
    inputs = subject.encode(models.picture(0), "what is it?")
    attention = subject.model.get_decoder().layers[1].self_attn
    monkeypatch.setattr(attention, "_call_impl", attention.forward)
    with pytest.raises(ProbeError, match=r"FastV: .* none in layer 1"), FastV(2, 0.5)(subject):
        subject.model(**inputs)


@torch.no_grad()
def test_a_decoder_that_ran_without_its_hooks_cannot_be_swapped_in(monkeypatch):
    subject = six_layers()
    inputs = subject.encode(models.picture(0), "what is it?")
    decoder = subject.model.get_decoder()
    with swap_vision(subject, [2], models.picture(1)):
        monkeypatch.setattr(decoder, "_call_impl", decoder.forward)
        with pytest.raises(ProbeError, match=r"swap_vision: .* ran without its hooks"):
            subject.model(**inputs)


def _tower(model):
    return model.model.vision_tower


ENCODER_PARTS = {
    "the encoder": _tower,
    "attention in it": lambda model: _tower(model).encoder.layers[1].self_attn,
    "the projector": lambda model: model.model.multi_modal_projector,
}


@pytest.mark.parametrize("part", ENCODER_PARTS.values(), ids=ENCODER_PARTS)
@torch.no_grad()
def test_an_encoder_that_ran_without_its_hooks_cannot_be_reduced(part, monkeypatch):
    model, processor = models.llava15()
    subject = probe.load(model, processor=processor)
    inputs = subject.encode(models.picture(0), "what is it?")
    module = part(model)
    monkeypatch.setattr(module, "_call_impl", module.forward)
    with pytest.raises(ProbeError, match="reduced: "), VisionZip(2, 1)(subject):
        model(**inputs)


PREFUSION_BLOCKS = {
    "mask": lambda model: drop_vision(model, [1], stack="prefusion"),
    "zero": lambda model: drop_vision(model, [1], "zero", stack="prefusion"),
    "frozen": lambda model: drop_vision(model, [1], "mask_frozen", stack="prefusion"),
    "knockout": lambda model: knockout(model, "text", "vision", [1], stack="prefusion"),
}


@pytest.mark.parametrize("block", PREFUSION_BLOCKS.values(), ids=PREFUSION_BLOCKS)
@pytest.mark.parametrize("layers", [[0, 1], [1]], ids=["all", "one"])
@torch.no_grad()
def test_pre_fusion_that_ran_without_its_hooks_raises(block, layers, monkeypatch):
    model = build(num_prefusion_layers=2)
    inputs = {"input_ids": ids(1, 5, "image", 6, 7), "pixel_values": pixels(1, 1)}
    for number in layers:
        layer = model.base_model.prefusion.layers[number]
        monkeypatch.setattr(layer, "_call_impl", layer.forward)
        monkeypatch.setattr(layer.self_attn, "_call_impl", layer.self_attn.forward)
    with pytest.raises(ProbeError, match="none"), block(model):
        model(**inputs)


MINI_PARTS = ["compressor", "prefusion", "prefusion.layers.0", "language_model", "vision_tower"]


@pytest.mark.parametrize("wrap", ["itself", "a partial"])
@pytest.mark.parametrize("name", MINI_PARTS)
def test_compiled_parts_of_llava_mini_are_found(name, wrap):
    model = build(num_prefusion_layers=2)
    part = model.get_submodule(f"model.{name}")
    part.forward = WRAPPERS[wrap](torch.compile(part.forward))
    assert compiled_part(model) == f"model.{name}"
    in_llm = [lambda model: drop_vision(model, [0]), FastV(1, 0.5)]
    for block in (*PREFUSION_BLOCKS.values(), *in_llm):
        with pytest.raises(ProbeError, match="not compiled"), block(model):
            pass


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@torch.no_grad()
def test_a_block_that_had_nothing_to_change_says_so_and_is_no_error(block):
    subject = six_layers()
    inputs = subject.encode(None, "what is it?")
    expected = subject.model(**inputs).logits
    with pytest.warns(UserWarning, match="nothing was changed in this block"), block(subject):
        found = subject.model(**inputs).logits
    assert torch.equal(found, expected)


@torch.no_grad()
def test_a_block_that_changed_something_says_nothing():
    subject = six_layers()
    inputs = subject.encode(models.picture(0), "what is it?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in BLOCKS.values():
            with block(subject):
                subject.model(**inputs)


@pytest.mark.parametrize("mode", ["mask", "zero"])
@torch.no_grad()
def test_attention_that_ran_without_its_hooks_raises(mode, monkeypatch):
    subject = six_layers()
    inputs = subject.encode(models.picture(0), "what is it?")
    for layer in subject.model.get_decoder().layers:
        monkeypatch.setattr(layer.self_attn, "_call_impl", layer.self_attn.forward)
    with pytest.raises(ProbeError, match="none in layer 2"), drop_vision(subject, [2], mode):
        subject.model(**inputs)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_block_without_a_forward_ends_in_peace(block):
    with block(six_layers()):
        pass
