"""One hash of a model, whoever asks for it: of the values of its weights."""

import copy

import models
import pytest
import torch

import probe
from probe.errors import ProbeError
from probe.measures.verify import verify
from probe.subject.weights_hash import weights_hash


def test_verify_records_and_attributions_say_the_same():
    subject = probe.load("tiny-llava")
    expected = weights_hash(subject.model)
    image = models.picture()
    record = probe.measure(subject, image, "what is in the image ?", "red circle")
    assert record.attrs["weights"] == record["llm"].attrs.get("weights", expected) == expected
    assert probe.find_sinks(subject, image, "what is in the image ?").attrs["weights"] == expected
    assert f"tiny-llava ({expected}, float32, cpu)" in verify(subject, image).appendix


def test_a_hash_is_of_values_and_not_of_how_they_are_stored():
    model, _ = models.llava15()
    halves = copy.deepcopy(model).bfloat16()
    assert weights_hash(halves) == weights_hash(copy.deepcopy(halves).float())
    assert weights_hash(halves) != weights_hash(model)
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.lm_head.weight += 1e-3
    assert weights_hash(trained) != weights_hash(model) == weights_hash(copy.deepcopy(model))
    with pytest.raises(ProbeError, match="weights with values"):
        weights_hash(copy.deepcopy(model).to("meta"))
