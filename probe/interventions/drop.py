"""Take vision tokens away in some layers, in four exact senses.

    mask            text queries cannot see vision keys; vision rows go on among themselves, so later layers see them
                    as they evolved
    mask, freeze    the same, and vision rows skip these layers: they keep the value they had
    remove          vision rows are physically gone: shorter sequence, less compute, smaller cache. Text keeps its
                    positions. Behind each block of consecutive layers the rows return with the value they had before it
    zero            the softmax is untouched, but the values of vision keys count as zero for text queries: loss of
                    information without attention being given to other tokens instead

`freeze` equals `remove` to rounding, and to the end of the stack so does `mask`. In cached decoding what is dropped
stays dropped. Position ids never change. Padding counts as text.

    with drop_vision(subject.model, range(8, 32)):
        subject.model.generate(**inputs)
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probe.calls import AttentionCall
from probe.errors import ProbeError
from probe.interventions.edits import hide, read_otherwise
from probe.interventions.target import Layers, Target
from probe.rows import without_vision
from probe.sequences import Sequences
from probe.tap import Kernel, Output, is_untouched

MODES = ("mask", "remove", "zero")


@contextmanager
def drop_vision(
    model: Any,
    layers: Layers,
    how: str = "mask",
    freeze: bool = False,
    restore: bool = True,
    stack: str = "llm",
) -> Iterator[None]:
    """Drops vision tokens in these layers (0-based, any set) of a model or Subject while the block lasts.

    Forward, `generate` with cache, batches padded on either side, several pictures. No layer: nothing changes, to the
    bit. Undone on any exit. A sequence must run in the block from its prompt on.

    Args:
        how: "mask", "remove" or "zero", as above.
        freeze: with "mask", vision rows skip the layers.
        restore: with "remove", False: the rows never come back. Their rows of the output are then what they were
            before the first of the layers.

    Raises ProbeError before anything runs for a layer outside, an unknown `how`, a compiled model; with "mask" for
    flash attention; with "remove" for a static or quantized cache and a sliding window shorter than the sequence.
    """
    target = Target.of("drop_vision", model, layers, stack)
    _check(how, freeze, restore)
    if how == "remove" and not restore and target.layers:
        everything_behind = tuple(range(target.layers[0], len(target.stack.layers)))
        target = Target(target.called, target.model, target.stack, everything_behind)
    options = f"how={how}" + ", freeze=True" * freeze + ", restore=False" * (not restore)
    with target.at_work(how, options), ExitStack() as undo:
        if target.layers:
            dropping = {"mask": partial(_masked, freeze=freeze), "remove": _removed, "zero": _zeroed}[how]
            undo.enter_context(dropping(target))
        yield


def _check(how: str, freeze: bool, restore: bool) -> None:
    if how not in MODES:
        raise ProbeError("drop_vision", expected=f"how={', '.join(map(repr, MODES))}", got=repr(how))
    if freeze and how != "mask":
        raise ProbeError("drop_vision", expected="freeze with how='mask'", got=f"with how={how!r}")
    if not restore and how != "remove":
        raise ProbeError("drop_vision", expected="restore=False with how='remove'", got=f"with how={how!r}")


def _removed(target: Target):
    return without_vision(target.called, target.model, target.stack, target.layers)


@contextmanager
def _masked(target: Target, freeze: bool) -> Iterator[None]:
    target.refuse_flash("load the model with attn='sdpa', or use how='remove'")
    sequences = target.sequences()

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        now = sequences.running()
        return kernel(hide(call, now, ~now.vision, now.vision))

    with sequences.followed(), target.routed(around), ExitStack() as undo:
        for layer in target.layers if freeze else ():
            hook = target.stack.layers[layer].register_forward_hook(partial(_skip, sequences), with_kwargs=True)
            undo.callback(hook.remove)
        yield


def _skip(sequences: Sequences, layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
    """The layer's output, with vision rows as they came in."""
    if is_untouched():
        return None
    now = sequences.running()
    before: Tensor = args[0] if args else kwargs["hidden_states"]
    after = output[0] if isinstance(output, tuple) else output
    vision = now.of_queries(now.vision).to(after.device)
    if not vision.any() or after.shape[1] < vision.shape[1]:  # none, or removed from this layer
        return None
    after = torch.where(vision[..., None], before, after)
    return (after, *output[1:]) if isinstance(output, tuple) else after


@contextmanager
def _zeroed(target: Target) -> Iterator[None]:
    sequences = target.sequences()

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        now = sequences.running()
        vision = now.of_keys(now.vision, call.key_count).to(call.value.device)
        if not vision.any():
            return kernel(call)
        value = call.value.masked_fill(vision[:, None, :, None], 0)
        return read_otherwise(call, kernel, ~now.of_queries(now.vision), value=value)

    with sequences.followed(), target.routed(around):
        yield
