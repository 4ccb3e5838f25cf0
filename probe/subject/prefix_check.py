"""Whether what a sweep shares is exact for a model: tried out once, never looked up by name.

The model's own forward on a whole prompt, question included, is compared with what the sweep makes
of it: the keys and values of the image prefix, which was computed without the question, and the
logits of the untouched case. Attention that lets an image see the question, state that isn't keys
and values, or logits that are more than a linear map of the last hidden state all show here. What
cases of pre-fusion share is tried in the same way, on the logits alone.
"""

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.attention_tap import tap
from probe.hooks.model_structure import LayerStack
from probe.interventions.sweep.case_batch import CaseBatch
from probe.subject.image_prefix import EmbeddedPrompt, ImagePrefix

ROUNDING = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
}  # relative; what leaks changes keys by far more
ROUNDING_HALF = 0.1


@dataclass(frozen=True)
class SharingCheck:
    """`reason` is why nothing can be shared, "" where all is exact; `seconds` is what one forward
    took.
    """

    reason: str
    seconds: float


_verdicts: "weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple, SharingCheck]]" = (
    weakref.WeakKeyDictionary()
)


def verdict(
    model: PreTrainedModel,
    stack: LayerStack,
    inputs: Mapping[str, Tensor],
    prompt: EmbeddedPrompt,
    prefix: ImagePrefix,
) -> SharingCheck:
    """The verdict on a model with its present dtype and kernels; one forward, the first time.

    A prompt without vision says nothing about those with it.
    """
    known = _verdicts.setdefault(model, {})
    if (setting := (prompt.embeddings.dtype, prefix.length > 0, *_kernels(stack))) not in known:
        known[setting] = _tried(model, stack, inputs, prompt, prefix)
    return known[setting]


def verdict_of(
    model: PreTrainedModel,
    stack: LayerStack,
    inputs: Mapping[str, Tensor],
    untouched: Callable[[Mapping], Tensor],
) -> SharingCheck:
    """The verdict on a way to get the untouched model's logits (1, vocabulary) of a prompt's last
    token, which cases of another stack share. `seconds` is what one case takes."""
    known = _verdicts.setdefault(model, {})
    if (setting := (stack.name, model.dtype, *_kernels(stack))) not in known:
        logits = model(**inputs, use_cache=False).logits[:, -1]
        untouched(inputs)  # reads the image
        start = time.perf_counter()
        ours = untouched(inputs)
        seconds = time.perf_counter() - start
        exact = _difference(ours, logits) <= ROUNDING.get(logits.dtype, ROUNDING_HALF)
        reason = "" if exact else "its logits are others for an image that it has read before"
        known[setting] = SharingCheck(reason, seconds)
    return known[setting]


def _kernels(stack: LayerStack) -> tuple:
    return tuple(module.config._attn_implementation for module in stack.attention.values())  # pyright: ignore[reportAttributeAccessIssue]


def _tried(
    model: PreTrainedModel,
    stack: LayerStack,
    inputs: Mapping,
    prompt: EmbeddedPrompt,
    prefix: ImagePrefix,
) -> SharingCheck:
    differences: list[float] = []

    def compare(call: AttentionCall | AttentionWeights):
        assert isinstance(call, AttentionCall)  # what returns its weights has no keys
        for theirs, ours in zip((call.key, call.value), prefix.keys[call.name], strict=True):
            differences.append(_difference(ours, theirs[0, :, : prefix.length]))

    start = time.perf_counter()
    with tap(stack.attention, compare):
        logits = model(**inputs, use_cache=False).logits[:, -1]
    seconds = time.perf_counter() - start
    limit = ROUNDING.get(logits.dtype, ROUNDING_HALF)
    if prefix.length and not max(differences) <= limit:
        return SharingCheck("its image prefix is another one where a question follows", seconds)
    view_of = torch.zeros(1, len(stack.layers), dtype=torch.long)
    rows = CaseBatch(model, stack, [prefix.seen()], view_of, prompt, len(prompt.ids))
    if not _difference(rows.prefill(1)[:, 0], logits) <= limit:
        return SharingCheck("its logits are not those of its layers alone", seconds)
    return SharingCheck("", seconds)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative root mean square; infinite where the shapes don't agree."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30)) if ours.numel() else 0.0
