"""Take vision tokens away in some layers, in five exactly defined modes.

    mask              text queries cannot see vision keys; vision tokens are still updated, so later
                      layers see them as they evolved
    mask_frozen       as above, and vision tokens skip these layers: they keep their value
    remove            vision tokens are removed from the sequence: less compute, smaller cache. Text
                      keeps its positions. After each block of consecutive layers they return with
                      the value they had before it
    remove_for_good   removed from the first of the layers on; they never return
    zero              the softmax is unchanged, but vision values count as zero for text queries:
                      information is lost without attention being redistributed to other tokens.
                      How much the keys of vision take from words still depends on the image

`mask_frozen` equals `remove` to rounding; up to the end of the stack `mask` does too. During cached
decoding, dropped tokens stay dropped. Position ids never change. Padding counts as text.

    with drop_vision(subject.model, range(8, 32)):
        subject.model.generate(**inputs)

Where words read images by cross-attention (Mllama, Idefics), that attention adds nothing in the
chosen layers, whatever the mode. A layer without softmax attention carries the image in its state:
there only "remove" and "remove_for_good" leave nothing of it, and the other modes are refused.

In the pre-fusion of LLaVA-Mini (`stack="prefusion"`) the vision tokens are the patches, which two
kinds of tokens attend to: text and compressed tokens. `queries` selects the kinds that lose access.
The modes there are mask, mask_frozen and zero. In LLaVA-Mini's LLM the vision tokens are the
compressed tokens.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.model_structure import LayerStack, cross_attention
from probe.hooks.partial_cache import check_partial, limits
from probe.hooks.removal import Removal
from probe.hooks.sequence_tracker import SequenceTracker
from probe.hooks.token_removal import present_in, removed
from probe.hooks.tracked_sequence import ForwardTracker, TrackedSequence
from probe.interventions.attention_edits import mask_keys, replace_keys_values
from probe.interventions.cross_reading import silenced
from probe.interventions.layer_target import (
    PREFUSION,
    Layers,
    LayerTarget,
    Names,
    as_names,
    warn_unchanged,
)

DropMode = Literal["mask", "mask_frozen", "remove", "remove_for_good", "zero"]
DROP_MODES: tuple[str, ...] = get_args(DropMode)
PREFUSION_MODES = ("mask", "mask_frozen", "zero")


@model_block
def drop_vision(
    model: Any,
    layers: Layers,
    mode: DropMode | str = "mask",
    *,
    stack: str = "llm",
    queries: Names | None = None,
    tokens: Any = None,
) -> Iterator[None]:
    """Drops vision tokens in these layers (counted from 0, any set) of a model or Subject while the
    block lasts.

    Works for forward, `generate` with cache, batches padded on either side and several images.
    Without layers nothing changes, to the bit. Undone on any exit. A sequence must run in the block
    from its prompt on.

    Args:
        mode: one of the five above.
        stack: "llm" or "prefusion".
        queries: which tokens lose access to vision: in pre-fusion "text", "compressed" or both; by
            default all but vision.
        tokens: only these vision tokens of the LLM: a mask (batch, token) over the inputs that run
            in the block, such as `inputs.vision_of(frames=range(8))` or `vision_of(images=[1])`.
            The other vision tokens then are as text: they lose access to these.

    Raises ProbeError before anything runs for a layer outside the stack, an unknown mode and a
    compiled model; with "mask" and "mask_frozen" for flash attention; with "remove" and
    "remove_for_good" in pre-fusion, for a static or quantized cache, and with flash attention for a
    sliding window shorter than the sequence.
    """
    target = LayerTarget.of("drop_vision", model, layers, stack, reads_across="in the LLM")
    _check_mode(mode, stack)
    queries = _queries_of(target, queries)
    dropped = None if tokens is None else _mask_of(target, tokens)
    if mode == "remove_for_good" and target.layers:
        to_the_end = tuple(range(target.layers[0], len(target.stack.layers)))
        target = LayerTarget(target.called, target.model, target.stack, to_the_end)
    options = f"mode={mode}"
    if len(queries) < len(target.kinds) - 1:
        options += f", queries={'+'.join(queries)}"
    if dropped is not None:
        options += f", tokens={int(dropped.sum())}"
    with target.listed("remove" if mode.startswith("remove") else mode, options):
        if not target.layers:
            yield
        elif stack != PREFUSION and cross_attention(target.model):
            with silenced(target):
                yield
        elif mode.startswith("mask"):
            with _masked(target, queries, freeze=mode == "mask_frozen", vision=dropped):
                yield
        elif mode == "zero":
            with _zeroed(target, queries, dropped):
                yield
        else:
            with _removed(target, dropped):
                yield


def _mask_of(target: LayerTarget, tokens: Any) -> Tensor:
    """The chosen tokens as booleans. Raises ProbeError unless `tokens` is (batch, token)."""
    mask = torch.as_tensor(tokens)
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise ProbeError(
            "drop_vision",
            expected="tokens= as a mask of booleans (batch, token)",
            got=f"{mask.dtype} of shape {tuple(mask.shape)}".removeprefix("torch."),
            fix="pass inputs.vision_of(frames=...)",
        )
    if target.stack.name == PREFUSION or cross_attention(target.model):
        raise ProbeError(
            "drop_vision",
            expected="tokens= for an LLM whose vision tokens stand among the words",
            got="pre-fusion" if target.stack.name == PREFUSION else "cross-attention",
            fix="leave tokens= out",
        )
    return mask


def _check_mode(mode: str, stack: str) -> None:
    if mode not in DROP_MODES:
        raise ProbeError(
            "drop_vision", expected=f"mode={', '.join(map(repr, DROP_MODES))}", got=repr(mode)
        )
    if stack == PREFUSION and mode not in PREFUSION_MODES:
        raise ProbeError(
            "drop_vision",
            expected=f"mode={' or '.join(map(repr, PREFUSION_MODES))} in pre-fusion",
            got=repr(mode),
            fix="use mode='mask_frozen', which equals removing vision tokens there",
        )


def _queries_of(target: LayerTarget, queries: Names | None) -> tuple[str, ...]:
    """The kinds of tokens that lose access to vision. Raises ProbeError for a kind that the stack
    does not hold.
    """
    possible = tuple(kind for kind in target.kinds if kind != "vision")
    chosen = possible if queries is None else as_names(queries)
    if not chosen or set(chosen) - set(possible):
        known = " and ".join(map(repr, possible))
        raise ProbeError(
            "drop_vision", expected=f"queries of {known} in {target.stack.name}", got=repr(queries)
        )
    return chosen


@model_block
def _removed(target: LayerTarget, vision: Tensor | None = None) -> Iterator[None]:
    attention = target.stack.attention_by_layer(target.layers)
    of_layers = limits(target.called, target.model, attention)

    def check(sequence: TrackedSequence, cache: Any) -> None:
        if sequence.vision.any():
            check_partial(target.called, of_layers, sequence.length, cache, "use mode='mask'")

    sequences = SequenceTracker(
        target.called,
        target.model,
        target.stack.layers[0],
        check=check,
        whole_prompt=True,
        vision=vision,
    )
    with (
        sequences.followed(),
        removed(target.model, target.stack, _WithoutVision(sequences, target.layers)),
    ):
        yield
    if sequences.prompts and not sequences.had_vision:
        warn_unchanged(target.called)


class _WithoutVision(Removal):
    def __init__(self, sequences: SequenceTracker, layers: tuple[int, ...]):
        super().__init__(sequences)
        self.layers = frozenset(layers)

    def removed_positions(self, layer: int) -> Tensor | None:
        return self.sequences.running().vision if layer in self.layers else None


def _only(vision: Tensor | None) -> dict[str, Any]:
    """The tracker's option for some of the vision tokens; pre-fusion's tracker has none."""
    return {} if vision is None else {"vision": vision}


@model_block
def _masked(
    target: LayerTarget, queries: tuple[str, ...], freeze: bool, vision: Tensor | None = None
) -> Iterator[None]:
    target.refuse_flash("use mode='remove'")
    sequences = target.sequences(changes_vision=freeze, **_only(vision))

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        now = sequences.running()
        return kernel(mask_keys(call, now, now.named(queries), now.vision))

    with sequences.followed(), target.routed(around), ExitStack() as undo:
        for layer in target.layers if freeze else ():
            skip = partial(_skip, sequences, target.stack)
            # first: rows that come back after the layer are not present yet
            register = target.stack.layers[layer].register_forward_hook
            add_hook(undo, register, skip, with_kwargs=True, prepend=True)
        yield


def _skip(
    sequences: ForwardTracker,
    stack: LayerStack,
    layer: nn.Module,
    args: tuple,
    kwargs: dict,
    output: Any,
) -> Any:
    """The layer's output, with vision tokens as they were in its input."""
    now = sequences.running()
    before: Tensor = args[0] if args else kwargs["hidden_states"]
    after = output[0] if isinstance(output, tuple) else output
    vision = now.of_queries(now.vision).to(after.device)
    if (kept := present_in(stack)) is not None:  # a reducer or another removal is active
        vision = kept.take(vision, 1) & kept.real
    if not vision.any():
        return None
    if after.shape[:2] == vision.shape:  # several streams of a token may follow (HY-V4)
        vision = vision.reshape(*vision.shape, *[1] * (after.ndim - 2))
    else:  # or come first (Gemma 3n)
        vision = vision[..., None]
    after = torch.where(vision, before, after)
    return (after, *output[1:]) if isinstance(output, tuple) else after


@model_block
def _zeroed(
    target: LayerTarget, queries: tuple[str, ...], vision: Tensor | None = None
) -> Iterator[None]:
    sequences = target.sequences(**_only(vision))

    def around(call: AttentionCall, kernel: Kernel) -> Output:
        now = sequences.running()
        vision = now.of_keys(now.vision, call.key_count).to(call.value.device)
        if not vision.any():
            return kernel(call)
        value = call.value.masked_fill(vision[:, None, :, None], 0)
        return replace_keys_values(call, kernel, now.of_queries(now.named(queries)), value=value)

    with sequences.followed(), target.routed(around):
        yield
