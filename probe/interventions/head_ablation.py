"""Take single heads away, in four exactly defined modes.

    zero       the head's part before the output projection is 0
    mean       that part is its mean over the prompt's positions (padding left out)
    uniform    the head attends evenly to all keys that it can see; a learned sink keeps its score
    no_vision  in text queries the head cannot see vision keys; all heads of a layer together are
               `drop_vision` by mask in it

They act on all positions, generated ones included. While decoding, `mean` stays that of the prompt.
In pre-fusion, where vision rows run before the question is known, it is taken over vision rows for
these and over all other rows for the others; a row's padding takes part there as a word.

    with ablate_heads(subject.model, {8: [0, 3], 9: "all"}, mode="zero") as report:
        subject.model.generate(**inputs)
    print(report)

Source: zero and mean ablation as in Michel et al. 2019 (arXiv 1905.10650) and Wang et al. 2022
(arXiv 2211.00593).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.errors import ProbeError, one_of, whole_numbers
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output
from probe.hooks.block_threads import model_block
from probe.hooks.image_readers import CROSS
from probe.hooks.layer_sites import head_count
from probe.hooks.model_state import layer_ranges
from probe.hooks.model_structure import cross_attention
from probe.hooks.score_rule import without_bias
from probe.hooks.tracked_sequence import TrackedSequence
from probe.interventions.attention_edits import mask_keys
from probe.interventions.edit_report import EditReport
from probe.interventions.layer_target import PREFUSION, LayerTarget

HeadMode = Literal["zero", "mean", "uniform", "no_vision"]
HEAD_MODES: tuple[str, ...] = get_args(HeadMode)

Heads = int | str | Iterable[Any]  # "all", one, or several, counted from 0; elements are checked
HeadOutputs = Float[Tensor, "batch query head dim"]


@model_block
def ablate_heads(
    model: Any,
    heads: Mapping[int, Any],
    mode: HeadMode | str = "zero",
    *,
    stack: str = "llm",
) -> Iterator[EditReport]:
    """Ablates these heads (layer -> heads, both counted from 0) of a model or Subject while the
    block lasts, and gives a report of what was changed.

    Works for forward, `generate` with cache, batches padded on either side, grouped queries (a head
    is a query head) and sliding windows. Undone on any exit.

    Args:
        heads: {layer: head, heads or "all"}. Without any, nothing changes, to the bit.
        mode: one of the four above.
        stack: "llm"; "cross", the heads of cross-attention to the image (Mllama, Idefics) by the
            LLM's layers that they belong to, in all modes but "no_vision": "zero" takes the image
            away from them; or "prefusion", where all modes but "no_vision" need pixels: they change
            the vision rows of an image that was encoded before.

    Raises ProbeError before anything runs for an unknown mode, a layer or head outside, a compiled
    model, layers without softmax attention and, with "no_vision", flash attention; on exit where no
    call of one of the layers was reached.
    """
    one_of("ablate_heads", "a mode of", mode, HEAD_MODES)
    if not isinstance(heads, Mapping):
        raise ProbeError("ablate_heads", expected="heads as {layer: heads}", got=repr(heads))
    target = LayerTarget.of("ablate_heads", model, heads, stack, reads_across="in both")
    chosen = {layer: heads_of(target, layer, heads[layer]) for layer in target.layers}
    chosen = {layer: numbers for layer, numbers in chosen.items() if numbers}
    target = replace(target, layers=tuple(chosen))
    check_mode(target, str(mode))
    report = EditReport.of("ablate_heads", chosen)
    sequences = target.sequences(changes_vision=mode != "no_vision")

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        layer, now = target.layer_of(call.name), sequences.running()
        output, weights = kernel(call)
        numbers = list(chosen[layer])
        ablated = _ablated(str(mode), call, kernel, output, now, stack)
        changed = output.clone()
        changed[:, :, numbers] = ablated[:, :, numbers].to(output.dtype)
        report.note(layer, output[:, :, numbers], changed[:, :, numbers])
        return changed, weights

    with target.listed("heads", _in_words(str(mode), chosen)), ExitStack() as undo:
        if chosen:
            undo.enter_context(sequences.followed())
            undo.enter_context(
                target.routed(around, reports=False, hides_tokens=mode == "no_vision")
            )
        yield report
    report.require_calls(target.to_reach)


def check_mode(target: LayerTarget, mode: str) -> None:
    """Raises ProbeError for "no_vision" where no head can lose the image alone, and for kernels
    that take no mask.
    """
    if mode != "no_vision":
        return
    if cross_attention(target.model) and target.stack.name != PREFUSION:
        of_image = "which sees nothing but the image"
        of_words = "which sees words alone"
        raise ProbeError(
            target.called,
            expected="heads that see words and vision, for mode='no_vision'",
            got=f"attention {of_image if target.stack.name == CROSS else of_words}",
            fix="use mode='zero' with stack='cross': the heads then add nothing of the image",
        )
    target.refuse_flash()


def heads_of(target: LayerTarget, layer: int, heads: Heads) -> tuple[int, ...]:
    """The numbers of these heads of a layer, ascending. Raises ProbeError for one outside, and for
    a layer without softmax attention.
    """
    name = target.stack.modules[layer]
    if name is None:
        raise ProbeError(
            target.called,
            expected="layers with attention heads",
            got=f"layer {layer} (from 0)",
            fix="stack='cross' has those that read the image"
            if layer in cross_attention(target.model)
            else "",
        )
    count = head_count(target.called, target.stack.attention[name])
    if isinstance(heads, str):
        one_of(target.called, "heads as numbers or", heads, ["all"])
        return tuple(range(count))
    given = whole_numbers(target.called, "heads", heads)
    if outside := [head for head in given if not 0 <= head < count]:
        expected = f"heads from 0 to {count - 1} in layer {layer}"
        raise ProbeError(target.called, expected=expected, got=str(outside[0]))
    return tuple(sorted(set(given)))


def _in_words(mode: str, chosen: Mapping[int, tuple[int, ...]]) -> str:
    """The mode, and the heads: "mode=zero, heads=3:0-1 5:2"."""
    heads = " ".join(f"{layer}:{layer_ranges(numbers)}" for layer, numbers in chosen.items())
    return f"mode={mode}, heads={heads or 'none'}"


def _ablated(
    mode: str,
    call: AttentionCall,
    kernel: Kernel,
    output: HeadOutputs,
    now: TrackedSequence,
    stack: str,
) -> HeadOutputs:
    """The parts that all heads of a call would have if they were ablated."""
    if mode == "zero":
        return torch.zeros_like(output)
    if mode == "mean":
        return _mean_in_prefusion(output, now) if stack == PREFUSION else _mean(call, output, now)
    if mode == "uniform":
        # Equal scores: an even spread.
        even = torch.zeros_like(call.query)
        edited = replace(call, query=even, options=without_bias(call.options))
    else:
        edited = mask_keys(call, now, now.named(["text", "compressed"]), now.vision)
    if edited is call:
        return output
    # No query of this second run counts: a measurement has seen the first.
    nothing = torch.zeros(call.row_count, call.query_count, dtype=torch.bool)
    inactive = nothing.to(call.query.device)
    seen = replace(edited, active_queries=inactive, removed_queries=None, silent_queries=None)
    return kernel(seen)[0]


def _mean(call: AttentionCall, output: HeadOutputs, now: TrackedSequence) -> HeadOutputs:
    """The mean over the prompt's positions, kept for the tokens that are generated after it."""
    name = f"mean {call.name}"
    if now.past == 0:
        position = torch.arange(output.shape[1], device=output.device)
        counted = position <= now.end.to(output.device)[:, None]
        if now.real is not None:
            counted[:, : now.real.shape[1]] &= now.real.to(output.device)
        now.memo[name] = mean_over(output, counted)
    if name not in now.memo:
        raise ProbeError(
            "ablate_heads",
            expected="a prompt that runs in one forward, for mode='mean'",
            got="one whose first part was cached",
            fix="run the whole prompt at once",
        )
    return now.memo[name].expand_as(output)


def _mean_in_prefusion(output: HeadOutputs, now: TrackedSequence) -> HeadOutputs:
    """For each row, the mean over those of its kind: vision, or not."""
    vision = now.of_queries(now.vision).to(output.device)
    means = mean_over(output, vision), mean_over(output, ~vision)
    return torch.where(vision[..., None, None], *means)


def mean_over(
    output: HeadOutputs, counted: Bool[Tensor, "batch query"]
) -> Float[Tensor, "batch 1 head dim"]:
    """The mean over the counted positions, in float32 at least."""
    precise = output.to(torch.promote_types(output.dtype, torch.float32))
    weight = counted.to(precise.dtype)[..., None, None]
    total = weight.sum(1, keepdim=True).clamp_min(1)
    return (precise * weight).sum(1, keepdim=True) / total
