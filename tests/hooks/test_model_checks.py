"""Models whose rows change each other outside of attention, or whose layers run once more after a
block, are told from others.
"""

import sys
from types import SimpleNamespace

import pytest
from torch import nn

import probe
from probe.errors import ProbeError
from probe.hooks.model_checks import int8_threshold, require_rows_apart
from tests.families.models import FAMILIES


class EightBits(nn.Linear):
    """As bitsandbytes' Linear8bitLt: a linear map with the threshold of LLM.int8."""

    def __init__(self, threshold):
        super().__init__(2, 2)
        self.state = SimpleNamespace(threshold=threshold)


def test_eight_bits_with_a_threshold_mix_rows(monkeypatch):
    layers = [nn.Sequential(nn.Linear(2, 2), EightBits(6.0)), EightBits(0.0)]
    assert int8_threshold(layers) == 0  # no layer is of bitsandbytes
    fake = SimpleNamespace(nn=SimpleNamespace(Linear8bitLt=EightBits))
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    assert int8_threshold(layers) == 6
    assert int8_threshold(layers[1:]) == 0
    require_rows_apart("knockout", layers[1:])
    with pytest.raises(ProbeError, match=r"knockout: .*llm_int8_threshold=6, .*mode='remove'"):
        require_rows_apart("knockout", layers)


def test_layers_that_run_again_in_the_backward_pass_are_refused():
    model, _ = FAMILIES["llava"]()
    model.gradient_checkpointing_enable()
    with probe.drop_vision(model, [0]):  # in eval mode layers run once
        pass
    model.train()
    for block in (
        lambda: probe.drop_vision(model, [0]),
        lambda: probe.knockout(model, "text", "vision", [0]),
        lambda: probe.ablate_heads(model, {0: [1]}),
    ):
        with pytest.raises(ProbeError, match=r"got gradient checkpointing in .*; call"), block():
            pass
    model.gradient_checkpointing_disable()
    with probe.drop_vision(model, [0]):
        pass
