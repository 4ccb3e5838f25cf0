"""Words that get nothing of the image in some layers of an LLM that reads it by cross-attention
(Mllama, Idefics).

The mean over no keys is taken as 0: what that attention adds for these words is exactly 0, biases
of its output projection included. In a measurement their attention is 0, as on any keys that an
intervention hides; they count as queries that could see the image.

    with silenced(target):                      # all words: what drop_vision does
        model(**inputs)
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.model_structure import cross_attention
from probe.interventions.layer_target import LayerTarget, warn_unchanged

Queries = Callable[[], Bool[Tensor, "batch query"]]  # of the forward that runs


@model_block
def silenced(
    target: LayerTarget, queries: Queries | None = None, *, reports: bool = False
) -> Iterator[None]:
    """What the cross-attention of the chosen layers adds for these words is 0 while the block
    lasts; `queries=None`: for all. `reports`: warns where forwards ran and no word was silenced.
    """
    in_layers = cross_attention(target.model)
    modules = dict(in_layers[layer] for layer in target.layers if layer in in_layers)
    forwards: list[nn.Module] = []
    any_silent: list[bool] = []

    def chosen(like: Tensor) -> Bool[Tensor, "batch query"]:
        everything = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
        return everything if queries is None else queries().to(like.device)

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        is_silent = chosen(call.query[:, 0])
        reading = ~is_silent
        if call.active_queries is not None:
            is_silent = is_silent & call.active_queries
            reading = reading & call.active_queries
        if call.silent_queries is not None:  # of another block
            is_silent = is_silent | call.silent_queries
        return kernel(replace(call, active_queries=reading, silent_queries=is_silent))

    def silence(module: nn.Module, args: tuple, output: Any) -> Any:
        added = output[0] if isinstance(output, tuple) else output
        is_silent = chosen(added)
        any_silent.append(bool(is_silent.any()))
        added = added.masked_fill(is_silent[..., None], 0)
        return (added, *output[1:]) if isinstance(output, tuple) else added

    def note_forward(model: nn.Module, *hooked: Any) -> None:
        forwards.append(model)

    with ExitStack() as undo:
        undo.enter_context(routed(modules, around, required=False))
        for module in modules.values():
            add_hook(undo, module.register_forward_hook, silence)
        add_hook(undo, target.model.register_forward_hook, note_forward)
        yield
    if reports and forwards and not any(any_silent):
        warn_unchanged(target.called)


def among_words(target: LayerTarget) -> LayerTarget:
    """The chosen layers in which words attend to words too: without those that read the image
    alone (Mllama). Raises ProbeError where that is all of them.
    """
    with_words = tuple(layer for layer in target.layers if target.stack.modules[layer] is not None)
    if target.layers and not with_words:
        raise ProbeError(
            target.called,
            expected="a layer in which words attend to words",
            got=f"layer {target.layers[0]} (from 0), which attends to the image alone",
            fix="choose other layers, or 'vision' as keys",
        )
    return replace(target, layers=with_words)
