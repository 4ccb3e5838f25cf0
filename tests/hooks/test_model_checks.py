"""Models whose rows change each other outside of attention are told from others."""

import sys
from types import SimpleNamespace

import pytest
from torch import nn

from probe.errors import ProbeError
from probe.hooks.model_checks import int8_threshold, require_rows_apart


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
