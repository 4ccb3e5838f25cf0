"""Compiled parts are refused wherever they hide; no block that changed nothing ends in silence."""

import functools

import models
import pytest
import torch
from prompts import six_layers

import probe
from probe.errors import ProbeError
from probe.hooks.compiled import compiled_part
from probe.interventions import drop_vision, knockout
from probe.reducers import FastV


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
