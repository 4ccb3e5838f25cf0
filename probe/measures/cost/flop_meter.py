"""Operations that run inside some modules, kept apart by what they multiply.

    with metered({"encoder": [model.vision_tower]}) as flops:
        model(**inputs)
    flops["encoder"], flops["everything"]     # [products with weights, products of activations]

A multiply-add is two operations. torch's own counter counts; the grouped products of experts, which
it does not know, are shown to it as the product of each row with one expert's matrix.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from probe.hooks.block_threads import add_hook, model_block

OPERATIONS = ("linear", "attention")
WITH_WEIGHTS = ("aten.mm", "aten.addmm", "aten.convolution")  # the others multiply activations
GROUPED = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")

Flops = Float[np.ndarray, " operation"]


@model_block
def metered(parts: Mapping[str, Sequence[nn.Module]]) -> Iterator[dict[str, Flops]]:
    """The operations that run inside these modules, and "everything", until the block ends."""
    flops = {name: np.zeros(len(OPERATIONS)) for name in parts}
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _ExpertByExpert():

        def add(name: str, sign: int) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                flops[name] = flops[name] + sign * _so_far(counter)

            return hook

        with ExitStack() as undo:
            for name, modules in parts.items():
                for module in modules:
                    add_hook(undo, module.register_forward_pre_hook, add(name, -1))
                    add_hook(undo, module.register_forward_hook, add(name, +1))
            yield flops
    flops["everything"] = _so_far(counter)


def _so_far(counter: FlopCounterMode) -> Flops:
    by_operation = np.zeros(len(OPERATIONS))
    for operator, flops in counter.get_flop_counts().get("Global", {}).items():
        by_operation[0 if str(operator) in WITH_WEIGHTS else 1] += flops
    return by_operation


class _ExpertByExpert(TorchDispatchMode):
    """Counts grouped products, of which only the shape is needed, as plain ones."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func.name() in GROUPED:
            rows, matrices = args[:2]
            return torch.mm(rows, matrices[0])
        return func(*args, **(kwargs or {}))
