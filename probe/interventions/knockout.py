"""Tokens of one type cannot see those of another, in some layers: the general form of dropping by mask.

    with knockout(subject.model, "response", "vision", range(16, 32), types=inputs.types):
        subject.model.generate(**inputs)

Source: "attention knockout", Geva et al. 2023 (arXiv 2304.14767) section 4.1; here with a cache, padding and any types.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from probe.calls import AttentionCall
from probe.errors import ProbeError
from probe.interventions.edits import hide
from probe.interventions.target import Layers, Target
from probe.sequences import Sequence
from probe.tap import Kernel, Output
from probe.tokens import TokenTypes

Names = str | tuple[str, ...] | list[str]
WITHOUT_TYPES = ("vision", "text")


@contextmanager
def knockout(
    model: Any, queries: Names, keys: Names, layers: Layers, types: TokenTypes | None = None
) -> Iterator[None]:
    """Queries of these types cannot see keys of those types in these layers while the block lasts.

    "vision" and "text" (all that is not vision, padding included) need no types. Other names are those of `types`, the
    types of the inputs that run in the block (`inputs.types`), one row for each of their rows; generated tokens are
    "response". With `types`, "vision" is what they call so. A query that would be left without any key keeps itself.

    Raises ProbeError before anything runs for unknown names, a layer outside, a compiled model and flash attention; in
    the forward, before any layer, for inputs of another shape than `types`.
    """
    target = Target.of("knockout", model, layers)
    queries, keys = _names(queries), _names(keys)
    _check_names((*queries, *keys), types)
    target.refuse_flash("load the model with attn='sdpa'")
    sequences = target.sequences(check=lambda now, cache: types is None or _check_shape(now, types))

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        now = sequences.running()
        return kernel(hide(call, now, positions(queries, now, types), positions(keys, now, types)))

    with target.at_work("knockout", f"{'+'.join(queries)} to {'+'.join(keys)}"), ExitStack() as undo:
        if target.layers:
            undo.enter_context(sequences.followed())
            undo.enter_context(target.routed(around))
        yield


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _check_names(names: tuple[str, ...], types: TokenTypes | None) -> None:
    known = WITHOUT_TYPES if types is None else tuple(dict.fromkeys((*types.names, *WITHOUT_TYPES)))
    for name in names:
        if name not in known:
            fix = "pass types=inputs.types" if types is None else "see inputs.types.names"
            raise ProbeError("knockout", expected=f"one of {', '.join(known)}", got=repr(name), fix=fix)


def _check_shape(now: Sequence, types: TokenTypes) -> None:
    (rows, width), (batch, length) = types.ids.shape, now.vision.shape
    if batch % rows or length < width or (now.past == 0 and length != width):
        raise ProbeError(
            "knockout", expected=f"inputs of {rows} x {width} tokens, as types=", got=f"{batch} x {length}",
            fix="pass the types of the inputs that run in the block",
        )  # fmt: skip


def positions(names: tuple[str, ...], now: Sequence, types: TokenTypes | None) -> Bool[Tensor, "batch position"]:
    """Which positions of the running sequence are of one of these types."""
    which = torch.zeros_like(now.vision)
    for name in names:
        if name == "text":
            which |= ~now.vision
        elif types is None:
            which |= now.vision
        else:
            which |= _of_type(name, now, types)
    return which


def _of_type(name: str, now: Sequence, types: TokenTypes) -> Bool[Tensor, "batch position"]:
    """The prompt's positions from its types; what was generated since is response."""
    (rows, width), (batch, length) = types.ids.shape, now.vision.shape
    prompt = np.repeat(types.mask(name), batch // rows, axis=0)  # beams of a row stand together
    generated = np.full((batch, length - width), name == "response")
    return torch.as_tensor(np.concatenate([prompt, generated], 1), device=now.vision.device)
