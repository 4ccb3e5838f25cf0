"""Refuse forwards whose numbers overflow: NaN in a result means that there is nothing to average.

float16 ends at 65,504. Hidden states beyond it become infinite, and all that follows NaN: the model
answers "!!!!", and nothing measured on it means anything. bfloat16 has the range of float32.

    with finite_states("measure", model, ["llm"]):
        model(**inputs)      # ProbeError, with the first layer whose output is not finite
    require_finite("answer", model, logits, inputs)      # the same, of what a forward returned
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.block_threads import add_hook, model_block, only_this_thread
from probe.hooks.model_structure import stacks


class NotFiniteProbeError(ProbeError):
    """Numbers that overflow. Its name has that of its base: scripts tell errors by their names."""


@model_block
def finite_states(called: str, model: PreTrainedModel, needed: Iterable[str]) -> Iterator[None]:
    """Raises ProbeError at the end of the block where a layer of the `needed` stacks (by name) gave
    hidden states that are not finite. The first such layer of the model is named, be its stack
    needed or not (encoders have layers that nothing reads). Layers are not waited for: the numbers
    are looked at once, at the end.
    """
    needed = frozenset(needed)
    layers = [
        (name, number, layer)
        for name, stack in stacks(model).items()
        for number, layer in enumerate(stack.layers)
    ]
    finite: dict[int, Tensor] = {}  # index into `layers` -> over its calls, a bool on its device

    def note(index: int, layer: nn.Module, args: tuple, output: Any) -> None:
        hidden = (output[0] if isinstance(output, tuple) else output).detach()
        is_finite = hidden.abs().amax().isfinite()  # amax is NaN where any number is
        finite[index] = is_finite & finite[index] if index in finite else is_finite

    with ExitStack() as hooks:
        for index, (_, _, layer) in enumerate(layers):
            add_hook(hooks, layer.register_forward_hook, partial(note, index))
        yield
    bad = [layers[index] for index in sorted(finite) if not finite[index]]
    if any(name in needed for name, _, _ in bad):
        name, number, _ = bad[0]
        raise not_finite(called, model.dtype, f"after layer {number} (from 0) of {name}")


def require_finite(
    called: str, model: PreTrainedModel, values: Tensor, inputs: Mapping[str, Any]
) -> None:
    """Raises ProbeError where values that the model gave for these inputs hold NaN or infinity. One
    more forward then finds the layer.
    """
    if not bool(values.isfinite().all()):
        raise_not_finite(called, model, inputs)


@only_this_thread()
@torch.no_grad()
def raise_not_finite(called: str, model: Any, inputs: Mapping[str, Any]) -> NoReturn:
    """Raises ProbeError that names the first layer whose states for these inputs are not finite, or
    the logits where all layers are.
    """
    with finite_states(called, model, stacks(model)):
        model(**inputs, use_cache=False)
    raise not_finite(called, model.dtype, "in the logits")


def not_finite(called: str, dtype: torch.dtype, where: str) -> NotFiniteProbeError:
    """The error on numbers that are not finite, with what to do about them."""
    fix = "check the weights and the image"
    if dtype == torch.float16:
        fix = "load the model with dtype='bfloat16' (or 'float32'): float16 ends at 65,504"
    got = f"NaN or infinity {where} in {str(dtype).removeprefix('torch.')}"
    return NotFiniteProbeError(called, expected="finite hidden states", got=got, fix=fix)
