"""Whether it is known what each position of an encoder's attention is.

Most encoders read one sequence a view, [cls | patches], or pack images one behind the other
(`packed_encoder.py`). Others add tokens: of these nothing is claimed. An encoder is therefore
asked: the first attention calls of a forward say how many sequences of how many keys it reads. So
are other stacks that read the image (`reader_queries.py`).

    has_known_layout(subject, inputs, stacks(subject.model)["vision"])
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import add_hook, only_this_thread
from probe.hooks.layer_arguments import hidden_states
from probe.hooks.model_state import active_interventions, active_reducers, state_of
from probe.hooks.model_structure import LayerStack, cls_tokens, stacks
from probe.hooks.offload import own_values
from probe.hooks.own_failure import own_failures
from probe.hooks.stop_forward import StopForward
from probe.measures.attention.packed_encoder import Packed, packed_order
from probe.subject.inputs import Inputs
from probe.subject.prompt_processing import LONG_VIDEO
from probe.subject.subject import Subject

FEW = 1000  # numbers in a tensor that is not pixels


@dataclass(frozen=True)
class CallShape:
    """Of one attention call: batch elements, queries and keys."""

    rows: int
    queries: int
    keys: int


def has_known_layout(subject: Subject, inputs: Inputs, stack: LayerStack) -> bool:
    """Whether the encoder reads the views of `inputs.encoder_grid` one by one, as many patches in
    each, after its own class token; or packed (`packed_encoder.py`).
    """
    with_images = zip(inputs.encoder_grid, inputs.images, strict=True)
    if any(shown and not len(grid) for grid, shown in with_images):
        return False  # a video and an image in one prompt
    if not _keeps_positions(subject.model, inputs, stack):
        return False
    order = packed_order(subject.model, inputs, stack)
    if order is not None:
        return Packed.of(inputs, order) is not None
    views = []
    for grid in inputs.encoder_grid:
        for image, tile in sorted(set(zip(grid.image.tolist(), grid.tile.tolist(), strict=True))):
            views.append(int(((grid.image == image) & (grid.tile == tile)).sum()))
    if not views or len(set(views)) > 1:
        return False
    keys = cls_tokens(subject.model) + views[0]
    known = state_of(subject.model).encoder_calls
    setting = _setting(subject.model, inputs, stack)
    if setting not in known:
        known[setting] = first_calls(subject.model, inputs, stack)
    calls = known[setting]
    return bool(calls) and all(call.keys == keys for call in calls)


@only_this_thread()
@torch.no_grad()
def _keeps_positions(model: PreTrainedModel, inputs: Inputs, stack: LayerStack) -> bool:
    """Whether all layers of the encoder run on the same positions: none merges patches on the way
    (MiniCPM-V 4.6). A property of a model, which is asked once.
    """
    known = state_of(stack.layers[0]).keeps_positions
    done = active_interventions(model), active_reducers(model)
    if done not in known:
        shapes: list[list[tuple[int, ...]]] = [[] for _ in stack.layers]
        last = len(stack.layers) - 1

        def note(number: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
            shapes[number].append(tuple(hidden_states(args, kwargs).shape[:-1]))
            if number == last:  # rows that share an image have it once: nothing runs behind
                raise StopForward

        with ExitStack() as blocks:
            blocks.enter_context(own_failures("measure", model, inputs))
            blocks.enter_context(suppress(StopForward))
            blocks.enter_context(until_llm(model))
            for number, layer in enumerate(stack.layers):
                before = layer.register_forward_pre_hook
                add_hook(blocks, before, partial(note, number), with_kwargs=True)
            model(**inputs, use_cache=False)
        different = {tuple(of_layer) for of_layer in shapes if of_layer}
        known[done] = len(different) <= 1
    return known[done]


def leave_out_unknown(
    subject: Subject, batch: Inputs, measured_stacks: dict[str, LayerStack], *, required: bool
) -> None:
    """Takes an encoder out of the stacks where it is not known what its positions are, and one that
    these inputs do not run; of a video that was encoded before, all but the LLM. Raises ProbeError
    where the caller asked for it.
    """
    if "vision" in batch:  # encoded already, a few frames at a time
        for name in set(measured_stacks) - {"llm"}:
            if required:
                got = f"a video of more than {LONG_VIDEO} frames, encoded before"
                fix = f"leave {name!r} out of stacks"
                raise ProbeError("measure", expected=f"a run of {name}", got=got, fix=fix)
            del measured_stacks[name]
        return
    encoders = [name for name in ("vision", "vision_video") if name in measured_stacks]
    if not encoders or not any(batch.images):
        return
    for name in encoders:
        stack = measured_stacks[name]
        if has_known_layout(subject, batch, stack):
            continue
        runs = bool(first_calls(subject.model, batch, stack))
        reason = "an encoder that reads each view as one sequence of class token and patches"
        if required:
            raise ProbeError(
                "measure",
                expected=reason,
                got="windows, packed images or other tokens" if runs else f"no call of {name}",
                fix=f"leave {name!r} out of stacks",
            )
        if runs:
            warnings.warn(
                f"the {name} stack is left out: measuring it takes {reason}", stacklevel=3
            )
        del measured_stacks[name]


def _setting(model: PreTrainedModel, inputs: Inputs, stack: LayerStack) -> tuple[Any, ...]:
    """All that what the encoder reads may depend on: shapes of pixels, and numbers beside them."""
    shapes = []
    for name, tensor in sorted(inputs.items()):
        if tensor.shape == inputs["input_ids"].shape:
            continue
        numbers = tensor.flatten().tolist() if tensor.numel() < FEW else None
        shapes.append((name, tuple(tensor.shape), repr(numbers)))
    done = active_interventions(model), active_reducers(model)
    return id(next(iter(stack.attention.values()))), *done, *shapes


@only_this_thread()
@torch.no_grad()
def first_calls(model: PreTrainedModel, inputs: Any, stack: LayerStack) -> list[CallShape]:
    """The attention calls of the stack's first layer with attention, one in the LLM; the forward
    ends where another layer of the stack, or the LLM, begins.
    """
    first, *later = stack.attention.items()
    in_llm = stack.numbers is not None
    calls: list[CallShape] = []

    def note(call: AttentionCall | AttentionWeights) -> None:
        if call.name != first[0]:
            raise StopForward
        calls.append(CallShape(call.row_count, call.query_count, call.key_count))
        if in_llm:
            raise StopForward

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        note(call)
        return kernel(call)

    modules = dict([first, *later[:1]])
    with ExitStack() as blocks:
        blocks.enter_context(suppress(StopForward))
        blocks.enter_context(routed(modules, around, weights=note, required=False))
        if not in_llm:
            blocks.enter_context(until_llm(model))
        model(**inputs, use_cache=False)
    return calls


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
        add_hook(undo, first.register_forward_pre_hook, stop)
        yield
