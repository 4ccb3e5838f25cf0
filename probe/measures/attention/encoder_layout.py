"""Whether it is known what each position of an encoder's attention is.

Encoders are asked for it: the first attention calls of a forward say how many sequences of how many
keys they read, noise in the place of pixels says which of these are patches
(`encoder_sequences.py`). Of an encoder that fits in none of the known ways nothing is claimed.
Other stacks that read the image are asked as well (`reader_queries.py`).

    layout_of(subject, inputs, stacks(subject.model)["vision"])
"""

import warnings
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import nn
from transformers import PreTrainedModel

from probe.data.lazy_frames import LONG_VIDEO
from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights, as_bool
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import add_hook, only_this_thread
from probe.hooks.layer_arguments import hidden_states
from probe.hooks.model_state import active_interventions, active_reducers, state_of
from probe.hooks.model_structure import LayerStack, cls_tokens, video_tower
from probe.hooks.own_failure import own_failures
from probe.hooks.stop_forward import StopForward, until_llm
from probe.measures.attention.encoder_sequences import (
    CallPositions,
    EncoderSequences,
    encoder_sequences,
    fits_without_asking,
)
from probe.measures.attention.merged_patches import in_cells
from probe.measures.attention.packed_encoder import FirstInput, first_input
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject

ENCODERS = ("vision", "vision_video")  # the stacks
FEW = 1000  # numbers in a tensor that is not pixels


@dataclass(frozen=True, eq=False)
class CallShape:
    """Of one attention call: batch elements, queries and keys; which keys no query may see."""

    rows: int
    queries: int
    keys: int
    is_hidden: Bool[np.ndarray, "row key"]

    @classmethod
    def of(cls, call: AttentionCall | AttentionWeights) -> "CallShape":
        is_hidden = np.zeros((call.row_count, call.key_count), bool)
        mask = getattr(call, "model_mask", None)
        if torch.is_tensor(mask):  # flex attention has blocks
            seen = as_bool(mask)
            if mask.ndim == 4:
                seen = seen[:, 0].any(1)
            is_hidden |= ~seen[:, : call.key_count].cpu().numpy()
        return cls(call.row_count, call.query_count, call.key_count, is_hidden)


def has_known_layout(subject: Subject, inputs: Inputs, stack: LayerStack) -> bool:
    """Whether it is known what each position of the encoder is (`encoder_sequences.py`)."""
    return isinstance(layout_of(subject, inputs, stack), EncoderSequences)


def layout_of(subject: Subject, inputs: Inputs, stack: LayerStack) -> EncoderSequences | str:
    """What each position of the encoder is; in words why that is not known, where it isn't."""
    with_images = zip(inputs.encoder_grid, inputs.images, strict=True)
    if any(shown and not len(grid) for grid, shown in with_images):
        has_video = any((grid.frame >= 0).any() for grid in inputs.grid)
        return "a video and an image in one prompt" if has_video else "several tensors of pixels"
    if not _reads_any(subject.model, inputs, stack):
        return f"no call of {stack.name}"
    first = first_input(subject.model, inputs, stack)
    if first is None:
        return f"no call of {stack.name}"
    order, cls = first.order(), cls_tokens(subject.model)
    if order is not None and fits_without_asking(inputs, [len(order)], cls=0):  # patches alone
        positions = CallPositions([len(order)], np.zeros(len(order), bool), order=order)
    else:
        positions = _positions(subject.model, inputs, stack, first, cls)
    found = encoder_sequences(inputs, positions, cls)
    if found is None and (cells := in_cells(inputs, positions)) is not None:
        found = encoder_sequences(cells, positions, cls)
    if found is None:
        keys = sorted(set(positions.keys))
        patches = sum(map(len, inputs.encoder_grid))
        return f"sequences of {' or '.join(map(str, keys))} positions for {patches} patches"
    return found


def _reads_any(model: PreTrainedModel, inputs: Inputs, stack: LayerStack) -> bool:
    """Whether the inputs have pixels for this encoder, of a model with one for images and one for
    frames. Rows that share an image have it once: the forward fails behind the encoder that reads
    it, before the other one could be asked.
    """
    if video_tower(model) is None:
        return True
    pixels = [name for name in inputs if name.startswith("pixel_values")]
    return any(("video" in name) == (stack.name == "vision_video") for name in pixels)


def _positions(
    model: PreTrainedModel, inputs: Inputs, stack: LayerStack, first: FirstInput, cls: int
) -> CallPositions:
    """What the first layer's calls hold. Noise is asked where class tokens and patches are not
    all of it.
    """
    known = state_of(model).encoder_calls
    setting = _setting(model, inputs, stack)
    if setting not in known:
        known[setting] = first_calls(model, inputs, stack)
    calls: list[CallShape] = known[setting]
    keys = [call.keys for call in calls for _ in range(call.rows)]
    hidden = [call.is_hidden.ravel() for call in calls]
    is_hidden = np.concatenate(hidden) if hidden else np.zeros(0, bool)
    is_patch = None
    if not fits_without_asking(inputs, keys, cls):
        second = first_input(model, inputs, stack, seed=1)
        is_patch = None if second is None else first.differs(second)
        if is_patch is None or len(is_patch) != len(is_hidden):
            return CallPositions(keys, is_hidden[:0])
    return CallPositions(keys, is_hidden, is_patch)


def known_part(subject: Subject, inputs: Inputs, stack: LayerStack) -> LayerStack | str:
    """The layers of an encoder of which it is known what each position is: all, or those before
    patches are merged. In words why there are none, where it isn't.
    """
    found = layout_of(subject, inputs, stack)
    if isinstance(found, str):
        return found
    count = _layers_on_patches(subject.model, inputs, stack)
    return stack if count == len(stack.layers) else stack.first(count, "merged patches")


@only_this_thread()
@torch.no_grad()
def _layers_on_patches(model: PreTrainedModel, inputs: Inputs, stack: LayerStack) -> int:
    """How many layers of the encoder run on the positions of the first one: all but those after
    patches were merged (MiniCPM-V 4.6). A property of a model, which is asked once.
    """
    known = state_of(stack.layers[0]).on_patches
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
        merged = [n for n, of_layer in enumerate(shapes) if of_layer and of_layer != shapes[0]]
        known[done] = min(merged, default=len(shapes))
    return known[done]


def leave_out_unknown(
    subject: Subject, batch: Inputs, measured_stacks: dict[str, LayerStack], *, required: bool
) -> None:
    """Takes an encoder out of the stacks where it is not known what its positions are, and one that
    these inputs do not run; layers out of one that merges patches between them (their numbers are
    NaN); of a video that was encoded before, all but the LLM. Raises ProbeError
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
    encoders = [name for name in ENCODERS if name in measured_stacks]
    if not encoders or not any(batch.images):
        return
    for name in encoders:
        try:
            reason = known_part(subject, batch, measured_stacks[name])
        except ProbeError as error:  # timm's
            if required:
                raise
            reason = f"attention that can't be seen: {error.got}"
        if isinstance(reason, LayerStack):
            measured_stacks[name] = reason
            continue
        known = "an encoder of which each position is known"
        if required:
            fix = f"leave {name!r} out of stacks"
            raise ProbeError("measure", expected=known, got=reason, fix=fix)
        if not reason.startswith("no call"):
            message = f"the {name} stack is left out: measuring it takes {known}, not {reason}"
            warnings.warn(message, stacklevel=3)
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
        calls.append(CallShape.of(call))
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
