"""Weights that a tensor class of its own packs (torchao, quanto): what they stand for.

unpacked(layer.weight)          # plain numbers, which can be reshaped
plain_linear(layer)             # the same map with plain weights
"""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def unpacked(values: Tensor) -> Tensor:
    """The numbers of a parameter, as they act."""
    return values.dequantize() if is_traceable_wrapper_subclass(values) else values


def plain_linear(linear: nn.Linear) -> nn.Linear:
    """The linear map itself, where its weight is plain; a copy with plain numbers, where it is
    packed.
    """
    if not is_traceable_wrapper_subclass(linear.weight):
        return linear
    plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    with torch.no_grad():
        plain.weight = nn.Parameter(unpacked(linear.weight.detach()))
    plain.bias = linear.bias
    return plain
