"""Words that read another image in some layers of an LLM that reads it by cross-attention (Mllama,
Idefics): what `swap_vision` does there.

In those layers the queries attend to the keys and values that the same module makes of the donor's
image. They don't depend on the LLM, so that nothing else of the donor's run is needed.

    with read_from_donor(target, subject.encode("another.jpg", question)):
        model(**inputs)
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, as_bool
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.block_threads import model_block, only_this_thread, untouched
from probe.hooks.layer_arguments import without_cache
from probe.hooks.model_structure import cross_attention
from probe.hooks.prompt_lengths import prompt_ends
from probe.hooks.sequence_tracker import SequenceTracker
from probe.hooks.tracked_sequence import real_positions
from probe.interventions.layer_target import LayerTarget, warn_unchanged


@model_block
def read_from_donor(target: LayerTarget, donor: Mapping[str, Tensor]) -> Iterator[None]:
    """All words read the donor's image in the cross-attention of the chosen layers while the block
    lasts. `donor`: inputs of one row, or of as many as run in the block (beams share).

    Raises ProbeError for a donor without an image; in the forward for one whose image has another
    number of keys, or others of them hidden.
    """
    in_layers = cross_attention(target.model)
    modules = dict(in_layers[layer] for layer in target.layers if layer in in_layers)
    first_layer = target.stack.layers[0]
    sequences = SequenceTracker(target.called, target.model, first_layer, whole_prompt=True)
    of_donor = _calls(target, modules, donor)
    last_of_donor = prompt_ends(donor["input_ids"], real_positions(donor["input_ids"], donor))

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        now, read = sequences.running(), of_donor[call.name]
        row_of = _rows(target.called, call, read)
        if now.past == 0:
            shown = _visible(read, last_of_donor)[row_of]
            if shown.shape[1] != call.key_count or (shown != _visible(call, now.end)).any():
                raise ProbeError(
                    target.called,
                    expected=f"a donor whose image has {call.key_count} keys, the same ones hidden",
                    got=f"{shown.shape[1]} keys, {int((~shown).sum())} hidden",
                    fix="take images of the same number, size and shape",
                )
        return kernel(replace(call, key=read.key[row_of], value=read.value[row_of]))

    with sequences.followed(), routed(modules, around, required=False) as taps:
        yield
    if modules and sequences.prompts and not any(tap.called for tap in taps):
        warn_unchanged(target.called)


@only_this_thread()
@torch.no_grad()
def _calls(
    target: LayerTarget, modules: Mapping[str, Any], donor: Mapping[str, Any]
) -> dict[str, AttentionCall]:
    """The cross-attention's calls in one forward of the donor on the untouched model."""
    calls: dict[str, AttentionCall] = {}

    def keep(call: AttentionCall, kernel: Kernel) -> Output:
        calls[call.name] = call
        return kernel(call)

    with ExitStack() as undo:
        undo.enter_context(untouched())
        undo.enter_context(routed(modules, keep, required=False, always=True))
        target.model(**without_cache(donor))
    if missed := [name for name in modules if name not in calls]:
        got = f"none that {missed[0]} reads"
        raise ProbeError(target.called, expected="a donor with an image", got=got)
    return calls


def _rows(called: str, call: AttentionCall, read: AttentionCall) -> Tensor:
    """The donor's row for each row of a call. Raises ProbeError for another number of rows."""
    if call.row_count % read.row_count:
        expected = f"a donor of 1 row or of {call.row_count}, as the inputs"
        raise ProbeError(called, expected=expected, got=str(read.row_count))
    rows = torch.arange(call.row_count, device=read.key.device)
    return rows * read.row_count // call.row_count


def _visible(call: AttentionCall, last: Tensor) -> Bool[Tensor, "batch key"]:
    """The keys that the prompt's last tokens see, under the model's own mask."""
    everything = torch.ones(call.row_count, call.key_count, dtype=torch.bool)
    if call.model_mask is None:
        return everything
    mask = call.model_mask.expand(call.row_count, -1, -1, -1)
    rows = torch.arange(call.row_count, device=mask.device)
    return as_bool(mask[rows, 0, last.to(mask.device)]).cpu()
