"""Take vision tokens away in some layers, in four exact senses.

    mask            text queries cannot see vision keys; vision rows go on among themselves, so later layers see them
                    as they evolved
    mask, freeze    the same, and vision rows skip these layers: they keep the value they had
    remove          vision rows are physically gone: shorter sequence, less compute, smaller cache. Text keeps its
                    positions. Behind each block of consecutive layers the rows return with the value they had before it
    zero            the softmax is untouched, but the values of vision keys count as zero for text queries: loss of
                    information without attention being given to other tokens instead

`freeze` equals `remove` to rounding, and to the end of the stack so does `mask`. In cached decoding
what is dropped stays dropped. Position ids never change. Padding counts as text.

    with drop_vision(subject.model, range(8, 32)):
        subject.model.generate(**inputs)

In the pre-fusion of LLaVA-Mini (`stack="prefusion"`) vision rows are the patches, and two kinds of
rows read them: the text and the compressed tokens. `queries` says which of the two is cut off.
There, mask, freeze and zero are defined; removed rows would save nothing that freezing does not
say. In its LLM, vision is what the compressed tokens are.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output, is_untouched
from probe.hooks.partial_cache import check_partial, windows
from probe.hooks.prefusion_tracker import PrefusionTracker
from probe.hooks.sequence_tracker import SequenceTracker, TrackedSequence
from probe.hooks.token_removal import Removal, present_in, removed
from probe.interventions.attention_edits import mask_keys, replace_keys_values
from probe.interventions.layer_target import PREFUSION, Layers, LayerTarget, Names, as_names

MODES = ("mask", "remove", "zero")


@contextmanager
def drop_vision(
    model: Any,
    layers: Layers,
    how: str = "mask",
    freeze: bool = False,
    restore: bool = True,
    stack: str = "llm",
    queries: Names | None = None,
) -> Iterator[None]:
    """Drops vision tokens in these layers (0-based, any set) of a model or Subject while the block
    lasts.

    Forward, `generate` with cache, batches padded on either side, several images. No layer: nothing
    changes, to the bit. Undone on any exit. A sequence must run in the block from its prompt on.

    Args:
        how: "mask", "remove" or "zero", as above.
        freeze: with "mask", vision rows skip the layers.
        restore: with "remove", False: the rows never come back. Their rows of the output are then what they were
            before the first of the layers.
        stack: "llm" or "prefusion".
        queries: who is cut off from vision, in pre-fusion "text", "compressed" or both; by default all but vision.

    Raises ProbeError before anything runs for a layer outside, an unknown `how`, a compiled model;
    with "mask" for flash attention; with "remove" in pre-fusion, for a static or quantized cache
    and a sliding window shorter than the sequence.
    """
    target = LayerTarget.of("drop_vision", model, layers, stack)
    _check(how, freeze, restore)
    queries = _cut_off(target, how, queries)
    if how == "remove" and not restore and target.layers:
        everything_behind = tuple(range(target.layers[0], len(target.stack.layers)))
        target = LayerTarget(target.called, target.model, target.stack, everything_behind)
    options = f"how={how}" + ", freeze=True" * freeze + ", restore=False" * (not restore)
    options += f", queries={'+'.join(queries)}" * (len(queries) < len(target.kinds) - 1)
    with target.at_work(how, options), ExitStack() as undo:
        if target.layers:
            dropping = {
                "mask": partial(_masked, freeze=freeze),
                "remove": _removed,
                "zero": _zeroed,
            }[how]
            undo.enter_context(dropping(target, queries))
        yield


def _check(how: str, freeze: bool, restore: bool) -> None:
    if how not in MODES:
        raise ProbeError(
            "drop_vision", expected=f"how={', '.join(map(repr, MODES))}", got=repr(how)
        )
    if freeze and how != "mask":
        raise ProbeError("drop_vision", expected="freeze with how='mask'", got=f"with how={how!r}")
    if not restore and how != "remove":
        raise ProbeError(
            "drop_vision", expected="restore=False with how='remove'", got=f"with how={how!r}"
        )


def _cut_off(target: LayerTarget, how: str, queries: Names | None) -> tuple[str, ...]:
    """The kinds of rows that lose sight of vision. Raises ProbeError where the stack has not these,
    or can't do it.
    """
    if how == "remove" and target.stack.name == PREFUSION:
        raise ProbeError(
            "drop_vision",
            expected="how='mask' or 'zero' in pre-fusion",
            got="'remove'",
            fix="use how='mask', freeze=True: what removing its vision rows would give",
        )
    possible = tuple(kind for kind in target.kinds if kind != "vision")
    chosen = possible if queries is None else as_names(queries)
    if not chosen or set(chosen) - set(possible):
        known = " and ".join(map(repr, possible))
        raise ProbeError(
            "drop_vision", expected=f"queries of {known} in {target.stack.name}", got=repr(queries)
        )
    return chosen


@contextmanager
def _removed(target: LayerTarget, queries: tuple[str, ...]) -> Iterator[None]:
    limits = windows(target.called, target.model, target.layers)

    def check(sequence: TrackedSequence, cache: Any) -> None:
        if sequence.vision.any():
            check_partial(target.called, limits, sequence.length, cache, "use how='mask'")

    sequences = SequenceTracker(
        target.called, target.model, target.stack.layers[0], check=check, whole_prompt=True
    )
    with (
        sequences.followed(),
        removed(target.model, target.stack, _WithoutVision(sequences, target.layers)),
    ):
        yield


class _WithoutVision(Removal):
    def __init__(self, sequences: SequenceTracker, layers: tuple[int, ...]):
        super().__init__(sequences)
        self.layers = frozenset(layers)

    def absent(self, layer: int) -> Tensor | None:
        return self.sequences.running().vision if layer in self.layers else None


@contextmanager
def _masked(target: LayerTarget, queries: tuple[str, ...], freeze: bool) -> Iterator[None]:
    target.refuse_flash("load the model with attn_implementation='sdpa', or use how='remove'")
    sequences = target.sequences(changes_vision=freeze)

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        now = sequences.running()
        return kernel(mask_keys(call, now, now.named(queries), now.vision))

    with sequences.followed(), target.routed(around), ExitStack() as undo:
        for layer in target.layers if freeze else ():
            skip = partial(
                _skip, sequences
            )  # first: rows that come back behind the layer are not there yet
            hook = target.stack.layers[layer].register_forward_hook(
                skip, with_kwargs=True, prepend=True
            )
            undo.callback(hook.remove)
        yield


def _skip(
    sequences: SequenceTracker | PrefusionTracker,
    layer: nn.Module,
    args: tuple,
    kwargs: dict,
    output: Any,
) -> Any:
    """The layer's output, with vision rows as they came in."""
    if is_untouched():
        return None
    now = sequences.running()
    before: Tensor = args[0] if args else kwargs["hidden_states"]
    after = output[0] if isinstance(output, tuple) else output
    vision = now.of_queries(now.vision).to(after.device)
    if (there := present_in(layer)) is not None:  # a reducer, or another removal, is at work
        vision = there.take(vision, 1) & there.real
    if not vision.any():
        return None
    after = torch.where(vision[..., None], before, after)
    return (after, *output[1:]) if isinstance(output, tuple) else after


@contextmanager
def _zeroed(target: LayerTarget, queries: tuple[str, ...]) -> Iterator[None]:
    sequences = target.sequences()

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        now = sequences.running()
        vision = now.of_keys(now.vision, call.key_count).to(call.value.device)
        if not vision.any():
            return kernel(call)
        value = call.value.masked_fill(vision[:, None, :, None], 0)
        return replace_keys_values(call, kernel, now.of_queries(now.named(queries)), value=value)

    with sequences.followed(), target.routed(around):
        yield
