"""Models that are wrapped, quantized or share a config: what can be had is given, what can't is
told before any forward.
"""

import copy
import inspect
import warnings

import models
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from torch import nn

import probe
from probe.errors import ProbeError
from probe.hooks.model_structure import output_projection
from probe.interventions import drop_vision
from probe.measures.attribution.attribute import attribute
from probe.plots import agreement
from probe.plots.attention_agreement import verdict
from probe.records.rank_agreement import rank_agreement
from probe.reducers import FastV, VisionZip

ASKED = models.picture(0), "what is it?", "a red circle"


class Packed(nn.Linear):
    """A linear map whose weight is a column of numbers that stand for it, as bitsandbytes keeps 4
    bits in bfloat16.
    """

    def forward(self, input):
        return nn.functional.linear(input, self.weight.view(self.out_features, -1), self.bias)


class Scaled(nn.Linear):
    """A linear map of float8 with a scale beside it."""

    def forward(self, input):
        return nn.functional.linear(input, self.weight.float(), self.bias)


def packed(linear):
    linear.__class__ = Packed
    linear.weight = nn.Parameter(linear.weight.reshape(-1, 1), requires_grad=False)


def float8(linear):
    linear.__class__ = Scaled
    linear.weight = nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)


def quantized(pack=packed):
    model, processor = models.llava15()
    plain = probe.load(copy.deepcopy(model), processor=processor)
    for layer in model.model.language_model.layers:
        pack(layer.self_attn.o_proj)
    return probe.load(model, processor=processor), plain


@pytest.mark.parametrize("pack", [packed, float8])
def test_a_packed_weight_is_no_projection(pack):
    subject, _ = quantized(pack)
    with pytest.raises(ProbeError, match="contribution: expected a plain linear output projection"):
        output_projection(subject.model.model.language_model.layers[0].self_attn)


def test_attribute_says_so_first_and_gives_all_else(monkeypatch):
    subject, plain = quantized()
    forwards_when_told = []
    forwards = []
    forward = subject.model.forward

    def counted(*args, **kwargs):
        forwards.append(1)
        return forward(*args, **kwargs)

    counted.__signature__ = inspect.signature(forward)
    subject.model.forward = counted
    monkeypatch.setattr(
        warnings,
        "showwarning",
        lambda message, *_: forwards_when_told.append((str(message), len(forwards))),
    )
    warnings.simplefilter("always")
    found = attribute(subject, *ASKED, progress=False)
    (told, count), *more = [one for one in forwards_when_told if "contribution" in one[0]]
    assert not more and count == 0 and forwards
    assert told.startswith("attribute: contribution is left out: Packed in ")
    assert told.endswith("merge the adapter, or load the model without quantization")
    expected = attribute(plain, *ASKED, progress=False)
    assert "contribution" not in found
    for name in ("attribution", "mass", "lift", "received"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    table = rank_agreement({"ablation": found})
    assert table["measure"].values.tolist() == ["mass", "lift", "received"]
    assert verdict(table)
    texts = [text.get_text() for text in agreement(found).findobj(Text)]
    assert any("every head: mass" in text for text in texts)


def test_without_attention_nothing_is_left_out():
    subject, _ = quantized()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attribute(subject, *ASKED, over="grid", attention=False, progress=False)


def test_measure_refuses_contribution_before_any_forward():
    subject, _ = quantized()
    subject.model.register_forward_pre_hook(lambda *_: pytest.fail("a forward ran"))
    with pytest.raises(ProbeError, match="contribution: expected a plain linear output projection"):
        probe.measure(subject, models.picture(0), "what is it?", contribution=True)


class PeftModel(nn.Module):
    """What peft wraps around a model, as far as it can be asked."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def get_base_model(self):
        return self.base_model


WRAPPED = {
    "drop_vision": lambda model, _: drop_vision(model, [0]).__enter__(),
    "VisionZip": lambda model, _: VisionZip(2, 1)(model).__enter__(),
    "FastV": lambda model, _: FastV(1, 0.5)(model).__enter__(),
}


@pytest.mark.parametrize("call", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapper_is_refused_with_the_way_out(call):
    model, processor = models.llava15()
    with pytest.raises(ProbeError, match=r"got a PeftModel; pass probe.load\(model, processor\)"):
        call(PeftModel(model), processor)
    assert probe.load(PeftModel(model), processor=processor).model is model


def test_a_model_that_shares_its_config_switches_alone():
    first, processor = models.llava15()
    second = type(first)(first.config).eval()
    assert second.config is first.config, "the case that is tested"
    subject = probe.load(second, processor=processor, attn_implementation="eager")
    of_first, of_second = (
        {part.config._attn_implementation for part in model.modules() if "config" in vars(part)}
        for model in (first, second)
    )
    assert of_first == {"sdpa"} and of_second == {"eager"}
    assert subject.provenance()["attention"] == "eager"
    assert second.config.text_config is second.model.language_model.config
    inputs = subject.encode(models.picture(0), "what is it?")
    with torch.no_grad():
        eager = second(**inputs, output_attentions=True).attentions
    assert eager and eager[0] is not None, "its own kernel is eager"
    assert isinstance(subject.answer(models.picture(0), "what is it?"), str)
