"""Tokens of some types cannot attend to those of others in some layers: the general form of
dropping by mask.

    with knockout(subject.model, "response", "vision", range(16, 32), types=inputs.types):
        subject.model.generate(**inputs)

Source: "attention knockout", Geva et al. 2023 (arXiv 2304.14767) section 4.1; here with a cache,
padding and any types.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from probe.data.token_types import TokenTypes
from probe.errors import ProbeError, one_of
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output
from probe.hooks.block_threads import model_block
from probe.hooks.model_structure import cross_attention
from probe.hooks.tracked_sequence import TrackedSequence
from probe.interventions.attention_edits import mask_keys
from probe.interventions.cross_reading import among_words, silenced
from probe.interventions.layer_target import PREFUSION, Layers, LayerTarget, Names, as_names


@model_block
def knockout(
    model: Any,
    queries: Names,
    keys: Names,
    layers: Layers,
    types: TokenTypes | None = None,
    stack: str = "llm",
) -> Iterator[None]:
    """Queries of these types cannot see keys of those types in these layers while the block lasts.

    "vision" and "text" (all that is not vision, padding included) need no types. Other names are
    those of `types`, the types of the inputs that run in the block (`inputs.types`), one row for
    each of their rows; generated tokens are "response". With `types`, "vision" is what they call
    so. A query that would be left without any key keeps itself.

    Where words read the image by cross-attention (Mllama, Idefics), "vision" as keys is the whole
    image: these queries get nothing of that attention. In the LLM's own attention all are words.

    In pre-fusion (`stack="prefusion"`) "vision" are the patches, "compressed" the tokens that are
    made of them, "text" is the rest, and `types` name words.

    Raises ProbeError before anything runs for unknown names, a layer outside, a compiled model and
    flash attention; in the forward, before any layer, for inputs of another shape than `types`.
    """
    target = LayerTarget.of("knockout", model, layers, stack, reads_across="in the LLM")
    queries = as_names(queries)
    keys = as_names(keys)
    _check_names((*queries, *keys), target.kinds, types)
    words, reads_image = _own_attention(target, keys)
    words.refuse_flash()
    sequences = target.sequences(
        changes_vision="vision" in queries,
        check=lambda now, cache: types is None or _check_fit(now, types),
    )

    def running_queries() -> Bool[Tensor, "batch query"]:
        now = sequences.running()
        return now.of_queries(positions(queries, now, types))

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        now = sequences.running()
        return kernel(
            mask_keys(call, now, positions(queries, now, types), positions(keys, now, types))
        )

    with (
        target.listed("knockout", f"{'+'.join(queries)} to {'+'.join(keys)}"),
        ExitStack() as undo,
    ):
        if target.layers:
            undo.enter_context(sequences.followed())
        if words.layers:
            undo.enter_context(words.routed(around, reports=not reads_image))
        if reads_image:
            undo.enter_context(silenced(target, running_queries, reports=not words.layers))
        yield


def _own_attention(target: LayerTarget, keys: tuple[str, ...]) -> tuple[LayerTarget, bool]:
    """The layers whose own attention has such keys, and whether these are those of cross-attention
    to the image as well.
    """
    if target.stack.name == PREFUSION or not cross_attention(target.model):
        return target, False
    reads_image = "vision" in keys
    if set(keys) == {"vision"}:
        return replace(target, layers=()), reads_image
    return among_words(target), reads_image


def _check_names(names: tuple[str, ...], kinds: tuple[str, ...], types: TokenTypes | None) -> None:
    kinds = tuple(reversed(kinds))
    known = kinds if types is None else tuple(dict.fromkeys((*types.names, *kinds)))
    for name in names:
        fix = "pass types=inputs.types" if types is None else "see inputs.types.names"
        one_of("knockout", "one of", name, known, fix=fix)


def _check_fit(now: TrackedSequence, types: TokenTypes) -> None:
    (rows, width), (batch, length) = types.ids.shape, now.vision.shape
    if batch % rows or length < width or (now.past == 0 and now.prompt_length != width):
        got = f"{batch} x {length}"
    elif (
        now.real is not None
        and (now.real.cpu().sum(1) != _repeated(types.ids >= 0, batch).sum(1)).any()
    ):
        got = "other padding"
    else:
        return
    raise ProbeError(
        "knockout",
        expected=f"inputs of {rows} x {width} tokens, as types=",
        got=got,
        fix="pass the types of the inputs that run in the block",
    )


def positions(
    names: tuple[str, ...], now: TrackedSequence, types: TokenTypes | None
) -> Bool[Tensor, "batch position"]:
    """Which positions of the running sequence are of one of these types."""
    tracked = ["text", "compressed"]  # kinds that the tracker knows; others are named by `types`
    if types is None or now.fed is not None:
        tracked.append("vision")
    which = now.named(name for name in names if name in tracked)
    for name in names:
        if name not in tracked:
            assert types is not None  # else the name was refused
            which |= now.spread(_of_type(name, now if now.fed is None else now.fed, types))
    return which


def _of_type(name: str, now: TrackedSequence, types: TokenTypes) -> Bool[Tensor, "batch position"]:
    """The prompt's positions from its types; what was generated since is response."""
    batch, length = now.vision.shape
    prompt = _repeated(types.mask(name), batch)
    if now.real is not None:  # padding may have been moved to the other side
        real_of_types = _repeated(types.ids >= 0, batch)
        order_of_types = torch.sort(~real_of_types, dim=1, stable=True).indices
        order_now = torch.sort(~now.real.cpu(), dim=1, stable=True).indices
        prompt = torch.zeros_like(prompt).scatter(1, order_now, prompt.gather(1, order_of_types))
    generated = prompt.new_full((batch, length - prompt.shape[1]), name == "response")
    return torch.cat([prompt, generated], 1).to(now.vision.device)


def _repeated(mask: np.ndarray, batch: int) -> Bool[Tensor, "batch token"]:
    """For each sequence of a batch: beams of a row stand together."""
    return torch.from_numpy(np.repeat(mask, batch // len(mask), axis=0))
