"""Models whose weights accelerate keeps elsewhere are measured as any other, to the bit."""

import copy

import accelerate
import models
import numpy as np
import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig

import probe
from probe.errors import ProbeError
from probe.hooks.offload import input_device, stored_parameter
from probe.measures.attribution.attribute import attribute
from probe.measures.encoder_concentration import concentration
from probe.measures.verify import verify
from probe.reducers import DownSample, VisionZip
from probe.subject.weights_hash import weights_hash
from tests.families.models import FAMILIES

QUESTION, RESPONSE = "what is it?", "a red circle"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def subject():
    model, processor = models.llava15()
    return probe.load(model, processor=processor)


@pytest.fixture(scope="module", params=["memory", "disk"])
def offloaded(request, subject, tmp_path_factory):
    model = copy.deepcopy(subject.model)
    if request.param == "memory":
        accelerate.cpu_offload(model, execution_device=CPU)
    else:
        folder = str(tmp_path_factory.mktemp("weights"))
        accelerate.disk_offload(model, folder, execution_device=CPU)
    assert model.device.type == "meta"
    return probe.load(model, processor=subject.processor)


def test_inputs_go_where_they_are_embedded(subject, offloaded):
    assert input_device(offloaded.model) == CPU
    assert offloaded.provenance()["device"] == "cpu"
    image = models.picture(0)
    assert offloaded.answer(image, QUESTION) == subject.answer(image, QUESTION)


def test_a_record_with_contribution_is_the_same(subject, offloaded):
    expected, found = (
        probe.measure(each, models.picture(0), QUESTION, RESPONSE, contribution=True)
        for each in (subject, offloaded)
    )
    for stack in expected.children:
        for name, values in expected[stack].data_vars.items():
            np.testing.assert_array_equal(found[stack][name].values, values.values)
    assert float(expected["llm"]["contribution"].max()) > 0


def test_an_attribution_is_the_same(subject, offloaded):
    expected, found = (
        attribute(each, models.picture(0), QUESTION, RESPONSE, over="grid", progress=False)
        for each in (subject, offloaded)
    )
    for name, values in expected.data_vars.items():
        np.testing.assert_array_equal(found[name].values, values.values)


def test_the_hash_is_that_of_the_weights(subject, offloaded):
    assert weights_hash(offloaded.model) == weights_hash(subject.model)


def test_verify_passes(offloaded):
    assert verify(offloaded, models.picture(0), QUESTION).passed


def test_positions_are_interpolated_of_their_stored_values(subject, offloaded):
    of_both = []
    for each in (subject, offloaded):
        with DownSample(4)(each), torch.no_grad():
            inputs = each.encode(models.picture(0), QUESTION)
            of_both.append(each.model(**inputs).logits)
            assert each.answer(models.picture(0), QUESTION)
    assert torch.equal(*of_both)
    assert {p.device.type for p in offloaded.model.parameters()} == {"meta"}, "taken away again"


@pytest.fixture(scope="module")
def with_newline():
    """A model with a parameter of its own, which its `generate` reads outside of the forward."""
    model, processor = models.llava_next_vicuna()
    moved = copy.deepcopy(model)
    accelerate.cpu_offload(moved, execution_device=CPU)
    return [probe.load(each, processor=processor) for each in (model, moved)]


def test_a_parameter_of_the_whole_model_is_there_for_generate(with_newline):
    here, away = with_newline
    asked = models.picture(0), QUESTION
    assert away.answer(*asked) == here.answer(*asked)
    assert verify(away, *asked).passed
    with VisionZip(4, 1)(here), VisionZip(4, 1)(away):
        assert away.answer(*asked) == here.answer(*asked)
    np.testing.assert_array_equal(
        *(concentration(each, models.picture(0))["received"].values for each in with_newline)
    )
    assert {p.device.type for p in away.model.parameters()} == {"meta"}


@pytest.mark.parametrize("kept_in", ["memory", "disk"])
def test_a_tied_weight_counts_once_in_the_hash(kept_in, tmp_path):
    model, _ = FAMILIES["paligemma"]()
    assert model.all_tied_weights_keys
    expected = weights_hash(model)
    if kept_in == "memory":
        accelerate.cpu_offload(model, execution_device=CPU)
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device=CPU)
    assert weights_hash(model) == expected


def test_weights_without_values_are_refused():
    with pytest.raises(ProbeError, match=r"got Linear.weight on the device meta"):
        stored_parameter(nn.Linear(2, 2, device="meta"), "weight")


class Adapter(nn.Module):
    """What peft puts in place of a linear map, as far as it can be asked."""

    def __init__(self, name):
        super().__init__()
        self.active_adapters, self.disable_adapters = [name], False


def test_adapters_change_the_provenance(subject):
    model = copy.deepcopy(subject.model)
    model.adapter = Adapter("cats")
    other = probe.load(model, processor=subject.processor)
    assert subject.provenance()["adapters"] == ""
    assert other.provenance()["adapters"] == "cats"
    model.adapter.disable_adapters = True
    assert other.provenance()["adapters"] == ""


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"load_in_8bit": True}, "bitsandbytes 8-bit"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes 4-bit nf4"),
    ],
)
def test_quantization_is_named_with_its_bits(subject, options, name):
    config = BitsAndBytesConfig(**options)
    model = copy.deepcopy(subject.model)
    model.config.quantization_config = config
    model.quantization_method = config.quant_method
    assert probe.load(model, processor=subject.processor).provenance()["quantization"] == name
