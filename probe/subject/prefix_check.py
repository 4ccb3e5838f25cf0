"""Whether sharing an image prefix is exact for a model: measured once, never looked up by name.

The model's own forward on a whole prompt is compared with what sharing makes of it: the keys and
values of the image prefix, which was computed without the question, and the logits of the untouched
case. This detects attention by which an image sees the question, state that is not keys and values,
and logits that are more than a linear map of the last hidden state. Attention that is no plain
softmax is not shared: what is shared is computed as one. Pre-fusion is checked on the
logits alone.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.attention_tap import tap
from probe.hooks.block_threads import add_hook, only_this_thread
from probe.hooks.layer_arguments import hidden_states
from probe.hooks.logit_map import said
from probe.hooks.model_state import state_of
from probe.hooks.model_structure import LayerStack
from probe.hooks.own_kernel import implementation_of
from probe.subject.image_prefix import ImagePrefix

# Largest relative difference that rounding explains; a leak changes keys by far more
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}
ROUNDING_HALF = 0.1


@dataclass(frozen=True)
class SharingCheck:
    """`reason`: why nothing can be shared, "" where sharing is exact. `seconds`: of one forward."""

    reason: str
    seconds: float


def _known_checks(model: PreTrainedModel) -> dict[Any, SharingCheck]:
    """The checks of a model, by setting. They are forgotten where its weights have changed."""
    state = state_of(model)
    weights = tuple(
        (parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version)
        for parameter in model.parameters()
    )
    if state.checked_weights != weights:
        state.checked_weights = weights
        state.sharing_checks = {}
    return state.sharing_checks


def check_sharing(
    model: PreTrainedModel,
    stack: LayerStack,
    inputs: Mapping[str, Tensor],
    untouched_logits: Callable[[], Tensor],
    prefix: ImagePrefix | None = None,
    way: str = "",
) -> SharingCheck:
    """The check of a model with its present dtype and kernels; one forward, the first time. `way`:
    the name of the way to be checked, where there are several.

    `untouched_logits`: the way to be checked of computing the untouched model's logits (1,
    vocabulary) of the prompt's last token. A prompt without vision says nothing about others.
    """
    kernels = map(implementation_of, stack.attention.values())
    has_prefix = prefix is not None and prefix.length > 0
    setting = (stack.name, model.dtype, has_prefix, way, *kernels)
    checks = _known_checks(model)
    if setting not in checks:
        checks[setting] = _check(model, stack, inputs, untouched_logits, prefix)
    return checks[setting]


@only_this_thread()
def _check(
    model: PreTrainedModel,
    stack: LayerStack,
    inputs: Mapping[str, Tensor],
    untouched_logits: Callable[[], Tensor],
    prefix: ImagePrefix | None,
) -> SharingCheck:
    key_differences: list[float] = []
    plain: list[bool] = []
    streams: list[int] = []

    def note_streams(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        streams.append(hidden_states(args, kwargs).ndim - 2)

    def compare(call: AttentionCall | AttentionWeights) -> None:
        assert isinstance(call, AttentionCall)  # a module that returns weights has no keys to share
        assert prefix is not None
        plain.append(call.rule is not None and call.rule.is_plain)
        for whole, shared in zip((call.key, call.value), prefix.keys[call.name], strict=True):
            key_differences.append(_difference(shared, whole[0, :, : prefix.length]))

    start = time.perf_counter()
    with ExitStack() as hooks:
        before = stack.layers[0].register_forward_pre_hook
        add_hook(hooks, before, note_streams, with_kwargs=True)
        if prefix is not None:
            hooks.enter_context(tap(stack.attention, compare))
        logits = model(**inputs, use_cache=False).logits[:, -1]
    seconds = time.perf_counter() - start
    if any(number > 1 for number in streams):  # Gemma 3n
        return SharingCheck("its layers are given several streams side by side", seconds)
    if not all(plain):
        return SharingCheck("its attention has caps, sinks or biases of scores", seconds)
    limit = ROUNDING.get(logits.dtype, ROUNDING_HALF)
    if prefix is not None and prefix.length and not max(key_differences) <= limit:
        return SharingCheck("its image prefix depends on the question", seconds)
    found = _tried(untouched_logits)
    if isinstance(found, str):
        return SharingCheck(found, seconds)
    exact = _difference_of_said(found, logits) <= limit
    if prefix is None:  # the image is encoded now: what each further case takes
        start = time.perf_counter()
        untouched_logits()
        seconds = time.perf_counter() - start
        return SharingCheck("" if exact else "its logits differ for an encoded image", seconds)
    return SharingCheck("" if exact else "its logits are not those of its layers alone", seconds)


def _tried(untouched_logits: Callable[[], Tensor]) -> Tensor | str:
    """The logits; in words why there are none, where a model's layers can't be run in this way: an
    indexer wants a mask over all tokens (Mistral Large 4). Our own refusals are the caller's.
    """
    try:
        return untouched_logits()
    except (ProbeError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        words = " ".join(str(error).split())[:100]
        return f"its layers can't be run by themselves ({type(error).__name__}: {words})"


def _difference_of_said(shared: Tensor, whole: Tensor) -> float:
    """The same of logits, without words that neither says: the lowest number outweighs all."""
    if shared.shape != whole.shape:
        return float("inf")
    unsaid = ~(said(shared) | said(whole))
    return _difference(shared.masked_fill(unsaid, 0), whole.masked_fill(unsaid, 0))


def _difference(shared: Tensor, whole: Tensor) -> float:
    """Relative root mean square difference; infinite where the shapes differ."""
    if shared.shape != whole.shape:
        return float("inf")
    shared = shared.double()
    whole = whole.double()
    norm = whole.norm().clamp_min(1e-30)
    return float((shared - whole).norm() / norm) if shared.numel() else 0.0
