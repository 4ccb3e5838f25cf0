"""Weights that a tensor class packs and does not let be reshaped, as torchao's do."""

import copy

import models
import numpy as np
import torch
from torch import Tensor, nn

import probe
from probe.hooks.packed_weights import plain_linear, unpacked

QUESTION = "what is in the image ?"
RESPONSE = "red circle"


class Packed(Tensor):
    """Whole numbers of 8 bits and a scale for each row."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    def dequantize(self):
        return self.numbers.to(self.scale) * self.scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, meta, size, stride):
        return cls(inner["numbers"], inner["scale"])

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            rows, weight, *bias = args
            return func(rows, weight.dequantize(), *bias, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scale)
        raise NotImplementedError(f"{func} of packed numbers")


def packed(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return Packed((weight / scale).round().to(torch.int8), scale)


def both():
    """A model with packed weights, and the same one with what they stand for."""
    plain, processor = models.llava15()
    model = copy.deepcopy(plain)
    for own, other in zip(model.modules(), plain.modules(), strict=True):
        if isinstance(own, nn.Linear):
            weight = packed(own.weight.detach())
            own.weight = nn.Parameter(weight, requires_grad=False)
            other.weight = nn.Parameter(weight.dequantize())
    return model, plain, processor


def test_what_arrives_and_the_hash_are_those_of_plain_weights():
    model, plain, processor = both()
    records = [
        probe.measure(
            probe.load(each, processor=processor),
            models.picture(),
            QUESTION,
            RESPONSE,
            contribution=True,
        )
        for each in (model, plain)
    ]
    own, expected = records
    assert own.attrs["weights"] == expected.attrs["weights"]
    for stack in ("llm", "vision"):
        arrives = own[stack]["contribution"].values
        assert np.nanmax(arrives) > 0
        np.testing.assert_allclose(arrives, expected[stack]["contribution"].values, rtol=1e-4)


def test_plain_weights_are_left_as_they_are():
    linear = nn.Linear(4, 3)
    assert plain_linear(linear) is linear and unpacked(linear.weight) is linear.weight
