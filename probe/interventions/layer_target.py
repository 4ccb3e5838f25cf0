"""The model, stack and layers that an intervention applies to, checked before anything runs."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from probe.errors import ProbeError, whole_numbers
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, Output, Wrapper, routed
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.chosen_keys import GivenMasks
from probe.hooks.compiled import refuse_compiled
from probe.hooks.image_readers import CROSS
from probe.hooks.model_checks import require_one_run, require_rows_apart, require_transformers
from probe.hooks.model_state import Intervention, layer_ranges, registered
from probe.hooks.model_structure import LayerStack, stacks
from probe.hooks.own_kernel import implementation_of
from probe.hooks.prefusion_tracker import PrefusionTracker
from probe.hooks.sequence_tracker import SequenceTracker
from probe.hooks.tracked_sequence import ForwardTracker

Layers = int | Iterable[Any]  # the elements are checked
Names = str | Iterable[str]  # kinds or types of tokens

PREFUSION = "prefusion"
TOKEN_KINDS = {
    PREFUSION: ("text", "compressed", "vision"),
    "llm": ("text", "vision"),
}  # stack -> kinds of its tokens
# Where an intervention may be on a model whose words read images by cross-attention:
# nowhere, in the LLM's own layers, or there and in the cross-attention (stack="cross")
ReadsAcross = Literal["nowhere", "in the LLM", "in both"]


@dataclass(frozen=True)
class LayerTarget:
    """Chosen layers of one stack of a model, ascending. `called` is the public function, for error
    messages.
    """

    called: str
    model: PreTrainedModel
    stack: LayerStack
    layers: tuple[int, ...]

    @classmethod
    def of(
        cls,
        called: str,
        model: Any,
        layers: Layers,
        stack: str = "llm",
        *,
        reads_across: ReadsAcross = "nowhere",
    ) -> "LayerTarget":
        """`model`: a model or a Subject; `reads_across`: where it works on one that reads images by
        cross-attention, whose layers are counted as the LLM's. Raises ProbeError for a compiled
        model, one in training with gradient checkpointing, a layer that does not exist, and a stack
        whose layers do not hold text and vision (those of the LLM and of pre-fusion do).
        """
        model = (
            model.model if not isinstance(model, nn.Module) and hasattr(model, "model") else model
        )
        refuse_compiled(called, model)
        require_transformers(called, model, "a transformers model or a Subject")
        require_one_run(called, model)
        found = stacks(model)
        known = [name for name in TOKEN_KINDS if name in found]
        if reads_across == "in both" and CROSS in found:
            known.append(CROSS)
        if stack not in known:
            names = " or ".join(map(repr, reversed(known)))
            raise ProbeError(
                called, expected=f"stack={names}, whose tokens are text and vision", got=repr(stack)
            )
        if CROSS in found and reads_across == "nowhere":
            name = next(iter(found[CROSS].attention))
            raise ProbeError(
                called,
                expected="a model whose vision tokens stand among the words",
                got=f"one that reads images by cross-attention ({name})",
                fix="drop_vision and knockout silence that attention",
            )
        layer_stack = found[stack]
        if stack == CROSS:
            layer_stack = layer_stack.among(found["llm"])
        indices = _indices(called, layers, len(layer_stack.layers))
        if stack == CROSS:
            _require_readers(called, layer_stack, indices)
        return cls(called, model, layer_stack, indices)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of tokens in the stack. Pre-fusion has no compressed tokens where these
        bypass it.
        """
        along = self.stack.name != PREFUSION or self.model.base_model.tokens_along
        return tuple(kind for kind in TOKEN_KINDS[self.stack.name] if along or kind != "compressed")

    @property
    def attention(self) -> dict[str, nn.Module]:
        """The chosen layers' attention modules, by qualified name."""
        return self.stack.attention_of(self.layers)

    def layer_of(self, name: str) -> int:
        """The layer that an attention module belongs to."""
        return self.stack.modules.index(name)

    def sequences(self, changes_vision: bool = False, **options: Any) -> ForwardTracker:
        """The tracker of the stack's tokens. `changes_vision`: vision tokens run in the block."""
        if self.stack.name == PREFUSION:
            return PrefusionTracker(
                self.called, self.model, self.stack, from_pixels=changes_vision, **options
            )
        first_layer = stacks(self.model)["llm"].layers[0]  # a block before it has no cache
        return SequenceTracker(self.called, self.model, first_layer, **options)

    @property
    def to_reach(self) -> str:
        """What to do where a layer was not called."""
        if CROSS in stacks(self.model):
            return "run a prompt with an image: without one layers that read it are left out"
        return (
            "run the forward inside the block, on the model as it was before it was compiled or "
            "wrapped"
        )

    @model_block
    def listed(self, kind: str, options: str = "") -> Iterator[None]:
        """Registers the intervention in `hooks/model_state.py`, which refuses contradictions."""
        where = "" if self.stack.name == "llm" else f"stack={self.stack.name}"
        options = ", ".join(filter(None, [options, where]))
        with registered(self.model, Intervention(self.called, kind, self.layers, options)):
            yield

    def _require_no_state(self) -> None:
        if reading := sorted({*self.layers} & {*self.stack.with_state}):
            raise ProbeError(
                self.called,
                expected="layers in which tokens read others by attention alone",
                got=f"layer {reading[0]} (from 0), where a convolution reads those before them too",
                fix="choose other layers, or try mode='remove'",
            )

    def _require_kernels(self) -> None:
        for name, module in self.attention.items():
            if not implementation_of(module):
                raise ProbeError(
                    self.called,
                    expected="attention through transformers' interface, which can be changed",
                    got=f"one of its own in {name} ({type(module).__name__})",
                )

    @model_block
    def routed(
        self, around: Wrapper, *, reports: bool = True, hides_tokens: bool = True
    ) -> Iterator[None]:
        """`around` in the attention calls of the chosen layers. The block may run no forward at
        all; raises ProbeError for layers without softmax attention or with one that goes past
        transformers' interface, and where a forward ran through
        the stack and never called one of the layers, or its attention, as modules. `reports`: warns
        where no call was changed. `hides_tokens`: refuses attention that chooses its keys by their
        content (`hooks/chosen_keys.py`), layers in which a convolution reads tokens too, and 8-bit
        layers in which rows change each other.
        """
        if without := sorted({*self.layers} & {*self.stack.without_attention}):
            raise ProbeError(
                self.called,
                expected="layers with softmax attention",
                got=f"layer {without[0]} (from 0) without: words read the image through its state",
                fix="choose the other layers, or drop vision with mode='remove'",
            )
        self._require_kernels()
        if hides_tokens:
            require_rows_apart(self.called, self.stack.layers)
            self._require_no_state()
        given = GivenMasks() if hides_tokens else None
        reach = _Reach(self.called, given)
        changing = partial(reach.note_change, around)
        with routed(self.attention, changing, required=False) as taps, ExitStack() as undo:
            for number, layer in enumerate(self.stack.layers):
                add_hook(undo, layer.register_forward_pre_hook, partial(reach.note_layer, number))
                if given is not None:
                    add_hook(undo, layer.register_forward_pre_hook, given.note, with_kwargs=True)
            add_hook(undo, self.model.register_forward_hook, reach.note_forward)
            yield
        for layer, tap in zip(self.layers, taps, strict=True):
            if reach.through_stack and not (tap.called and layer in reach.layers):
                raise ProbeError(
                    self.called,
                    expected="attention calls that it can change",
                    got=f"none in layer {layer} (from 0) of {self.stack.name}, although it ran",
                    fix=self.to_reach,
                )
        if reports and reach.forwards and not reach.changed:
            warn_unchanged(self.called)

    def refuse_vision(self, positions: Any, others: str) -> None:
        """Raises ProbeError for "vision" as positions where no vision token stands among the words.
        `others`: what may be asked for.
        """
        is_vision = isinstance(positions, str) and positions == "vision"
        if is_vision and self.stack.name != PREFUSION and CROSS in stacks(self.model):
            raise ProbeError(
                self.called,
                expected=f"positions of words ({others}) in a model whose words read the image by "
                "cross-attention",
                got="'vision'",
            )

    def refuse_flash(self, or_else: str = "") -> None:
        """Raises ProbeError for kernels that take no mask over pairs of query and key. `or_else`:
        what helps with those that take a mask of keys (flash).
        """
        for name, module in self.attention.items():
            kernel = implementation_of(module)
            if "flash" in kernel or "flex" in kernel or "paged" in kernel:
                fix = "load the model with attn_implementation='sdpa'"
                if or_else and "flash" in kernel:
                    fix += f", or {or_else}"
                raise ProbeError(
                    self.called,
                    expected="attention that takes a mask (sdpa or eager)",
                    got=f"{kernel} in {name}",
                    fix=fix,
                )


class _Reach:
    """How far the forwards of a block have come."""

    def __init__(self, called: str, given: GivenMasks | None):
        self.called = called
        self.given = given
        self.layers: set[int] = set()  # those of the stack that were called
        self.forwards = 0  # that came to their end
        self.through_stack = False  # whether one of these called any of the layers
        self.changed = False  # whether any attention call was changed

    def note_layer(self, number: int, *hooked: Any) -> None:
        self.layers.add(number)

    def note_forward(self, *hooked: Any) -> None:
        self.forwards += 1
        self.through_stack = self.through_stack or bool(self.layers)

    def note_change(self, around: Wrapper, call: AttentionCall, kernel: Kernel) -> Output:
        def run(changed: AttentionCall) -> Output:
            is_changed = changed is not call
            if is_changed and self.given is not None:
                self.given.require_all_shown(self.called, call)
            self.changed = self.changed or is_changed
            return kernel(changed)

        return around(call, run)


def warn_unchanged(called: str) -> None:
    """Warns that a block ran and changed no number, which is not an error."""
    warnings.warn(
        f"{called}: nothing was changed in this block: none of its forwards had the tokens that it "
        "concerns",
        stacklevel=2,
    )


def as_names(names: Names) -> tuple[str, ...]:
    """One name or several, as several."""
    return (names,) if isinstance(names, str) else tuple(names)


def _require_readers(called: str, cross: LayerStack, layers: tuple[int, ...]) -> None:
    """Raises ProbeError for a layer of the LLM without cross-attention to the image."""
    if others := sorted({*layers} & {*cross.without_attention}):
        readers = [number for number, name in enumerate(cross.modules) if name is not None]
        raise ProbeError(
            called,
            expected=f"layers that read the image by cross-attention: {layer_ranges(readers)}",
            got=f"layer {others[0]} (from 0)",
        )


def _indices(called: str, layers: Layers, count: int) -> tuple[int, ...]:
    given = whole_numbers(called, "layers", layers)
    if outside := [layer for layer in given if not 0 <= layer < count]:
        raise ProbeError(called, expected=f"layers from 0 to {count - 1}", got=str(outside[0]))
    return tuple(sorted(set(given)))
