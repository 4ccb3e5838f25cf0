"""Refuse forwards whose numbers overflow: NaN in a result means that there is nothing to average.

float16 ends at 65,504. Hidden states beyond it become infinite, and all that follows NaN: the model
answers "!!!!", and nothing measured on it means anything. bfloat16 has the range of float32.

    with finite_states("measure", model, stack):
        model(**inputs)      # ProbeError, with the first layer whose output is not finite
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.model_structure import LayerStack


@model_block
def finite_states(called: str, model: PreTrainedModel, stack: LayerStack) -> Iterator[None]:
    """Raises ProbeError at the end of the block where a layer of the stack gave hidden states that
    are not finite. Layers are not waited for: the numbers are looked at once, at the end.
    """
    finite: dict[int, torch.Tensor] = {}  # of each layer, over its calls: a bool on its device

    def note(number: int, layer: nn.Module, args: tuple, output: Any) -> None:
        hidden = (output[0] if isinstance(output, tuple) else output).detach()
        is_finite = hidden.abs().amax().isfinite()  # amax is NaN where any number is
        finite[number] = is_finite & finite[number] if number in finite else is_finite

    with ExitStack() as hooks:
        for number, layer in enumerate(stack.layers):
            add_hook(hooks, layer.register_forward_hook, partial(note, number))
        yield
    bad = [number for number in sorted(finite) if not finite[number]]
    if bad:
        where = f"{bad[0]} (from 0) of {stack.name}"
        raise ProbeError(
            called,
            expected="finite hidden states",
            got=f"NaN or infinity after layer {where} in {dtype_of(model)}",
            fix=advice(model),
        )


def advice(model: PreTrainedModel) -> str:
    """What to do about states that are not finite."""
    if model.dtype == torch.float16:
        return "load the model with dtype='bfloat16' (or 'float32'): float16 ends at 65,504"
    return "check the weights and the image"


def dtype_of(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")
