"""Where an intervention works: which model, which stack, which layers. Checked before anything
runs.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from probe.errors import ProbeError, shown
from probe.hooks.attention_tap import Wrapper, routed
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.compiled import refuse_compiled
from probe.hooks.model_state import Intervention, registered
from probe.hooks.model_structure import LayerStack, stacks
from probe.hooks.prefusion_tracker import PrefusionTracker
from probe.hooks.sequence_tracker import SequenceTracker

Layers = int | Iterable[Any]  # what is in it is checked, and told in one line
Names = str | Iterable[str]  # kinds of rows, or types of tokens

PREFUSION = "prefusion"
FOLLOWED = {
    PREFUSION: ("text", "compressed", "vision"),
    "llm": ("text", "vision"),
}  # stacks -> kinds of their rows


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
    def of(cls, called: str, model: Any, layers: Layers, stack: str = "llm") -> "LayerTarget":
        """`model`: a model or a Subject. Raises ProbeError for a compiled model, a layer that does
        not exist, and a stack whose layers do not hold text and vision (those of the LLM and of
        pre-fusion do).
        """
        model = (
            model.model if not isinstance(model, nn.Module) and hasattr(model, "model") else model
        )
        refuse_compiled(called, model)
        if not isinstance(model, PreTrainedModel):
            raise ProbeError(called, expected="a transformers model or a Subject", got=shown(model))
        found = {name: one for name, one in stacks(model).items() if name in FOLLOWED}
        if stack not in found:
            known = " or ".join(f"{name!r}" for name in reversed(found))
            raise ProbeError(
                called, expected=f"stack={known}, whose rows are text and vision", got=repr(stack)
            )
        return cls(called, model, found[stack], _indices(called, layers, len(found[stack].layers)))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the stack's rows are. Where the compressed tokens bypass pre-fusion, it has none of
        them.
        """
        along = self.stack.name != PREFUSION or self.model.base_model.tokens_along
        return tuple(kind for kind in FOLLOWED[self.stack.name] if along or kind != "compressed")

    @property
    def attention(self) -> dict[str, nn.Module]:
        """The chosen layers' attention modules, by qualified name."""
        names = list(self.stack.attention)
        return {names[layer]: self.stack.attention[names[layer]] for layer in self.layers}

    def layer_of(self, name: str) -> int:
        """The layer that an attention module belongs to."""
        return list(self.stack.attention).index(name)

    def sequences(
        self, changes_vision: bool = False, **options: Any
    ) -> SequenceTracker | PrefusionTracker:
        """What follows the stack's rows. `changes_vision`: vision rows must run in the block."""
        if self.stack.name == PREFUSION:
            return PrefusionTracker(
                self.called, self.model, self.stack, from_pixels=changes_vision, **options
            )
        return SequenceTracker(self.called, self.model, self.stack.layers[0], **options)

    @model_block
    def at_work(self, kind: str, options: str = "") -> Iterator[None]:
        """Listed as at work in the model (`probe.hooks.model_state`); refused where it contradicts
        another.
        """
        where = "" if self.stack.name == "llm" else f"stack={self.stack.name}"
        options = ", ".join(filter(None, [options, where]))
        with registered(self.model, Intervention(self.called, kind, self.layers, options)):
            yield

    @model_block
    def routed(self, around: Wrapper) -> Iterator[None]:
        """`around` in the attention calls of the chosen layers. The block may run no forward at
        all; raises ProbeError where a layer ran and its attention module was not called.
        """
        ran: set[int] = set()
        with routed(self.attention, around, required=False) as taps, ExitStack() as undo:
            for layer in self.layers:
                note = partial(_note, ran, layer)
                add_hook(undo, self.stack.layers[layer].register_forward_pre_hook, note)
            yield
        for layer, tap in zip(self.layers, taps, strict=True):
            if layer in ran and not tap.called:
                raise ProbeError(
                    self.called,
                    expected="attention calls that it can change",
                    got=f"none in layer {layer} (from 0), although it ran",
                    fix="use the model as it was before it was compiled or wrapped",
                )

    def refuse_flash(self, fix: str) -> None:
        """Raises ProbeError for kernels that take no mask over pairs of query and key."""
        for name, module in self.attention.items():
            kernel = str(getattr(module.config, "_attn_implementation", None) or "eager")
            if "flash" in kernel or "flex" in kernel or "paged" in kernel:
                raise ProbeError(
                    self.called,
                    expected="attention that takes a mask (sdpa or eager)",
                    got=f"{kernel} in {name}",
                    fix=fix,
                )


def _note(ran: set[int], layer: int, *hooked: Any) -> None:
    ran.add(layer)


def as_names(names: Names) -> tuple[str, ...]:
    """One name or several, as several."""
    return (names,) if isinstance(names, str) else tuple(names)


def _indices(called: str, layers: Layers, count: int) -> tuple[int, ...]:
    try:
        given = (
            [index(layers)]
            if not isinstance(layers, Iterable)
            else [index(layer) for layer in layers]
        )
    except TypeError:
        raise ProbeError(called, expected="layers as whole numbers", got=repr(layers)) from None
    if outside := [layer for layer in given if not 0 <= layer < count]:
        raise ProbeError(called, expected=f"layers from 0 to {count - 1}", got=str(outside[0]))
    return tuple(sorted(set(given)))
