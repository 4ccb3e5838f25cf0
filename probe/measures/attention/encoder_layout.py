"""Whether it is known what each position of an encoder's attention is.

Most encoders read one sequence a view, [cls | patches]. Others divide images into windows, add
tokens, or pack images one behind the other: of these nothing is claimed. An encoder is therefore
asked: the first attention calls of a forward say how many sequences of how many keys it reads.

    has_known_layout(subject, inputs, stacks(subject.model)["vision"])
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from transformers import PreTrainedModel

from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import add_hook, only_this_thread
from probe.hooks.model_structure import LayerStack, cls_tokens, text_decoder
from probe.hooks.stop_forward import StopForward
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject


def has_known_layout(subject: Subject, inputs: Inputs, stack: LayerStack) -> bool:
    """Whether the encoder reads the views of `inputs.encoder_grid` one by one, as many patches in
    each, after its own class token.
    """
    views = []
    for grid in inputs.encoder_grid:
        for image, tile in sorted(set(zip(grid.image.tolist(), grid.tile.tolist(), strict=True))):
            views.append(int(((grid.image == image) & (grid.tile == tile)).sum()))
    if not views or len(set(views)) > 1:
        return False
    keys = cls_tokens(subject.model) + views[0]
    calls = first_calls(subject.model, inputs, stack)
    return bool(calls) and all(found == keys for found in calls)


@only_this_thread()
@torch.no_grad()
def first_calls(model: PreTrainedModel, inputs: Any, stack: LayerStack) -> list[int]:
    """The number of keys of each attention call of the stack's first layer; the forward ends where
    another layer begins.
    """
    first, *later = stack.attention.items()
    calls: list[int] = []

    def note(call: AttentionCall, kernel: Kernel) -> Output:
        if call.name != first[0]:
            raise StopForward
        calls.append(call.key_count)
        return kernel(call)

    modules = dict([first, *later[:1]])
    with suppress(StopForward), routed(modules, note, required=False), _until_decoder(model):
        model(**inputs, use_cache=False)
    return calls


@contextmanager
def _until_decoder(model: PreTrainedModel) -> Iterator[None]:
    def stop(*hooked: Any) -> None:
        raise StopForward

    with ExitStack() as undo:
        add_hook(undo, text_decoder(model).register_forward_pre_hook, stop)
        yield
