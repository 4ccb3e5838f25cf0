"""End a forward early, once it has provided what it was run for.

with suppress(StopForward), routed(stack.attention, record):   # `record` raises StopForward
    model(**inputs)
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, routed
from probe.hooks.block_threads import add_hook, only_this_thread
from probe.hooks.model_structure import stacks
from probe.hooks.offload import own_values


class StopForward(Exception):  # noqa: N818  # not an error
    """Raised inside a forward that has provided what it was run for."""


@only_this_thread()
@torch.no_grad()
def attention_call_of(
    called: str,
    layer: nn.Module,
    attention: Mapping[str, nn.Module],
    hidden: Tensor,
    kwargs: Mapping[str, Any],
) -> AttentionCall:
    """Dry run: the attention call that a layer would make on these hidden states. `attention`: its
    one attention module, by name. Raises ProbeError where the module calls no kernel of
    transformers.
    """
    calls = []

    def keep(call: AttentionCall, kernel: Kernel) -> Any:
        calls.append(call)
        raise StopForward

    with suppress(StopForward), routed(attention, keep, innermost=True, required=False):
        layer.forward(hidden, **kwargs)
    if not calls:
        raise ProbeError(
            called,
            expected="attention through transformers' interface",
            got=f"other in {', '.join(attention)}",
        )
    return calls[0]


@contextmanager
def until_llm(model: PreTrainedModel) -> Iterator[None]:
    """While the block lasts, forwards end with StopForward where the LLM's first layer begins."""

    def stop(*hooked: Any) -> None:
        raise StopForward

    first = stacks(model)["llm"].layers[0]
    around = [
        module for module in model.modules() if any(part is first for part in module.modules())
    ]
    with ExitStack() as undo:
        undo.enter_context(own_values(*around[:-1]))  # their forwards end by an error
        add_hook(undo, first.register_forward_pre_hook, stop, always=True)
        yield
