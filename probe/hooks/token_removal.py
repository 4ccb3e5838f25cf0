"""Run decoder layers on some positions of a sequence only, as if the others were not there.

The rows that stay keep their original positions (or close the gaps, where a method does): their
rotary embeddings, and their rows and columns of the mask, are taken out of the model's own. Their
keys and values go to a cache layer that holds only them and answers with the length of the whole
sequence, because the model sizes every mask and position by the length of one layer. What is absent
when the prompt runs stays absent in decoding. A row that leaves keeps the value it had, and comes
back with it: behind the last layer all of them are there again.

Several removals may work on a model at once: a layer runs on what none of them takes away. Whoever
looks at such a layer through `tap` sees a call over the whole sequence, in which nobody asks from
or sees the absent positions.

    with removed(model, stack, removal):        # `interventions/drop.py`, mode="remove"; `reducers/ranking.py`
        model.generate(**inputs)

Source: the mechanism was studied first on 13 families, `facts/transformers.md` section 3.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from threading import get_ident, local
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel, routed
from probe.hooks.block_threads import add_hook, model_block, only_this_thread
from probe.hooks.kept_positions import FullLengthView, KeptPositions
from probe.hooks.layer_arguments import (
    find_cache,
    hidden_states,
    replace_hidden_states,
    without_cache,
)
from probe.hooks.model_state import BlockEntries, lock, state_of
from probe.hooks.model_structure import LayerStack
from probe.hooks.partial_cache import PartialLayer, store
from probe.hooks.sequence_tracker import SequenceTracker

Mask = Bool[Tensor, "batch position"]


class Removal(ABC):
    """What is taken away from the layers of a model. `sequences` has to be followed while it is at
    work.
    """

    closes_gaps = False  # whether positions behind what is absent move up

    def __init__(self, sequences: SequenceTracker):
        self.sequences = sequences

    @abstractmethod
    def absent(self, layer: int) -> Mask | None:
        """The positions that a layer runs without, as far as it is decided; None for none."""

    def before(self, entrance: "LayerInput") -> None:  # noqa: B027  # most have decided before
        """Is shown every layer that a prompt comes to, and may decide now what is absent from it
        on.
        """

    def order(self) -> Int[Tensor, "batch position"] | None:
        """What runs first, where that is not the order of positions."""
        return None


@model_block
def removed(model: PreTrainedModel, stack: LayerStack, removal: Removal) -> Iterator[None]:
    """Runs the stack's layers without what the removal takes away, and what others that are at work
    do.
    """
    state = state_of(stack.layers[0])
    with lock:
        flow = state.flow = state.flow or HiddenStateFlow(model, stack)
        flow.removals.add(removal)
    try:
        with flow.hooks(removal):
            yield
    finally:
        with lock:
            flow.removals.remove(removal)
            if not flow.removals:
                state.flow = None  # it refers to the model
                for attention in stack.attention.values():
                    state_of(attention).views.clear()


def present_in(stack: LayerStack) -> KeptPositions | None:
    """The positions that are present in the layer that runs now, None where nothing is absent."""
    flow = state_of(stack.layers[0]).flow
    return None if flow is None else flow.current


class LayerInput:
    """A layer that the prompt comes to, with the rows that are there now. `before` may give them
    other values.
    """

    def __init__(
        self,
        flow: "HiddenStateFlow",
        index: int,
        layer: nn.Module,
        hidden: Tensor,
        kwargs: Mapping[str, Any],
    ):
        self.index, self.hidden = index, hidden
        self._flow, self._layer, self._kwargs = flow, layer, kwargs

    def whole(self) -> Float[Tensor, "batch position hidden"]:
        """All positions, absent ones as they were when they left."""
        return self._flow.whole_of(self.hidden)

    def change(self, whole: Float[Tensor, "batch position hidden"]) -> None:
        """Other values for all rows, those that will come back included."""
        present = self._flow.current
        self.hidden = whole if present is None else present.take(whole, 1)
        self._flow.whole = whole

    def positions(self) -> tuple[Tensor, ...] | None:
        """The rotary embeddings of all positions, as they would be if none were absent: cosines and
        sines.
        """
        return self._kwargs.get("position_embeddings")

    def attention_call(self) -> AttentionCall:
        """The call that this layer's attention would make of the rows that would be there, as far
        as that is decided. Nothing comes of it."""
        flow, found = self._flow, []
        present, hidden = flow.present(self.index), self.hidden
        if present is not flow.current:
            hidden = self.whole() if present is None else present.take(self.whole(), 1)
        name, attention = flow.attention[self.index]

        def keep(call: AttentionCall, kernel: Kernel) -> Any:
            found.append(call)
            raise _Enough

        kwargs = without_cache(self._kwargs)
        kwargs |= flow.arguments(self.index, present, kwargs)
        with (
            torch.no_grad(),
            suppress(_Enough),
            only_this_thread(),
            routed({name: attention}, keep, innermost=True, required=False),
        ):
            self._layer.forward(hidden, **kwargs)
        state_of(attention).views.pop(get_ident(), None)
        if not found:
            raise ProbeError(
                flow.called,
                expected="attention through transformers' interface",
                got=f"other in {name}",
            )
        return found[0]


class _Enough(Exception):  # noqa: N818  # no error
    """Ends a layer that has shown its attention call."""


class _Running(local):
    """What a thread's forward has come to. Each thread has its own values."""

    current: KeptPositions | None = None
    whole: Tensor | None = None
    known: tuple[list[Mask], KeptPositions | None] = ([], None)


class HiddenStateFlow:
    """The rows on their way through the layers of one stack, under all removals that are at
    work.
    """

    def __init__(self, model: PreTrainedModel, stack: LayerStack):
        self.model, self.layers, self.attention = model, stack.layers, list(stack.attention.items())
        self.removals: BlockEntries[Removal] = BlockEntries()
        self._running = _Running()

    @model_block
    def hooks(self, removal: Removal) -> Iterator[None]:
        """The hooks of one removal. They run for all that are active in a thread, by the first."""

        def by_first(change: Callable[..., Any]) -> Callable[..., Any]:
            def hook(*arguments: Any) -> Any:
                return change(*arguments) if self.removals.active()[0] is removal else None

            return hook

        with ExitStack() as undo:
            undo.callback(self._start)
            add_hook(undo, self.model.register_forward_pre_hook, by_first(self._start))
            for index, layer in enumerate(self.layers):
                enter, leave = partial(self._enter, index), partial(self._leave, index)
                before, after = layer.register_forward_pre_hook, layer.register_forward_hook
                add_hook(undo, before, by_first(enter), with_kwargs=True)
                add_hook(undo, after, by_first(leave))
            yield

    @property
    def called(self) -> str:
        return self.removals.active()[-1].sequences.called

    @property
    def current(self) -> KeptPositions | None:
        """What is present in the layer that runs now, in this thread; None: everything."""
        return self._running.current

    @current.setter
    def current(self, present: KeptPositions | None) -> None:
        self._running.current = present

    @property
    def whole(self) -> Float[Tensor, "batch position hidden"] | None:
        """All rows, absent ones as they were when they left."""
        return self._running.whole

    @whole.setter
    def whole(self, hidden: Tensor | None) -> None:
        self._running.whole = hidden

    def _start(self, *hooked: Any) -> None:
        """Before a forward everything is present. One that was interrupted may have left
        something.
        """
        self._running.__dict__.clear()
        for _, attention in self.attention:
            state_of(attention).views.pop(get_ident(), None)

    def whole_of(self, hidden: Tensor) -> Tensor:
        if self.current is None or self.whole is None:
            return hidden
        return self.current.put(hidden, self.whole.to(hidden.device), 1)

    def _enter(self, index: int, layer: nn.Module, args: tuple, kwargs: dict) -> Any:
        """Arguments of the layer over the positions that are present, None to leave them as they
        are.
        """
        sequence = self.removals.active()[0].sequences.running()
        hidden = hidden_states(args, kwargs)
        cache = find_cache(self.called, args, kwargs)
        if sequence.past:
            new = sequence.length - sequence.past
            changed = self._continued(index, hidden, new, cache, kwargs)
            return None if changed is None else (args, kwargs | changed)
        entrance = LayerInput(self, index, layer, hidden, kwargs)
        for removal in self.removals.active():
            removal.before(entrance)
        hidden = self._moved(entrance.hidden, self.present(index))
        if self.current is None and hidden is hidden_states(args, kwargs):
            return None
        kwargs = kwargs | self.arguments(index, self.current, kwargs)
        if cache is not None and self.current is not None:
            gaps = self._gaps(index)
            store(cache, index, PartialLayer(self.current, None if gaps is None else gaps.sum(1)))
        return replace_hidden_states(args, kwargs, hidden)

    def _leave(self, index: int, layer: nn.Module, args: tuple, output: Any) -> Any:
        """Behind a layer: rows that come back, among the others."""
        if self.current is None:
            return None
        following = self.present(index + 1) if index + 1 < len(self.layers) else None
        if following is self.current or (
            following is not None and not following.has_more_than(self.current)
        ):
            return None
        hidden = self._moved(output[0] if isinstance(output, tuple) else output, following)
        if following is None:
            self.whole = None
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def present(self, index: int) -> KeptPositions | None:
        """What is there in a layer, as far as it is decided."""
        removals = self.removals.active()
        absent = [mask for removal in removals if (mask := removal.absent(index)) is not None]
        known, present = self._running.known
        if len(known) != len(absent) or any(a is not b for a, b in zip(known, absent, strict=True)):
            gone = torch.stack(absent).any(0) if absent else None
            present = (
                KeptPositions.without(gone, self._order())
                if gone is not None and gone.any()
                else None
            )
            self._running.known = (absent, present)
        return present

    def _moved(self, hidden: Tensor, present: KeptPositions | None) -> Tensor:
        """The hidden states with these rows instead of the current ones."""
        if present is self.current:
            return hidden
        self.whole = whole = self.whole_of(hidden)
        self.current = present
        return whole if present is None else present.take(whole, 1)

    def _gaps(self, index: int) -> Mask | None:
        """The absent positions whose place others take, None where all keep their own."""
        gone = [
            mask
            for one in self.removals.active()
            if one.closes_gaps and (mask := one.absent(index)) is not None
        ]
        return torch.stack(gone).any(0) if gone else None

    def _order(self) -> Int[Tensor, "batch position"] | None:
        orders = (removal.order() for removal in self.removals.active())
        return next((order for order in orders if order is not None), None)

    def _without_gaps(self, ids: Tensor, gaps: Mask) -> Int[Tensor, "batch position"]:
        """The positions' numbers when the rows beside the gaps are counted in the order in which
        they run.
        """
        there = KeptPositions.without(gaps, self._order())
        moved = self._up(ids, gaps.long().cumsum(1))
        return there.put(there.sorted.take(moved, 1), moved, 1)

    def arguments(
        self, index: int, present: KeptPositions | None, kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a layer is handed besides these rows of a prompt. Has its attention shown over the
        whole sequence.
        """
        if present is None:
            return {}
        taken = self._shown(index, present, present, kwargs)
        ids, embeddings, gaps = (
            kwargs.get("position_ids"),
            kwargs.get("position_embeddings"),
            self._gaps(index),
        )
        if gaps is not None and ids is not None:
            taken["position_ids"] = ids = present.take(self._without_gaps(ids, gaps), 1)
            taken["position_embeddings"] = self._rotary(embeddings, ids)
            return taken
        if ids is not None:
            parts = [
                present.take(x, 1) for x in (ids if ids.ndim == 3 else [ids])
            ]  # time, row and column, or one
            taken["position_ids"] = torch.stack(parts) if ids.ndim == 3 else parts[0]
        if embeddings is not None:
            taken["position_embeddings"] = tuple(present.take(x, 1) for x in embeddings)
        return taken

    def _continued(
        self, index: int, hidden: Tensor, new: int, cache: Any, kwargs: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The same for new rows behind what is in the cache."""
        if cache is None:
            raise ProbeError(
                self.called,
                expected="the cache among a layer's arguments",
                got="none while decoding",
            )
        layer = cache.layers[index]
        if not isinstance(layer, PartialLayer) or layer.present is None:
            return None
        everything_new = KeptPositions.all(hidden.shape[0], new, hidden.device)
        taken = self._shown(index, everything_new, layer.present.then(new), kwargs)
        if layer.closed is not None and (ids := kwargs.get("position_ids")) is not None:
            ids = self._up(ids, layer.closed[:, None])
            taken |= {
                "position_ids": ids,
                "position_embeddings": self._rotary(kwargs.get("position_embeddings"), ids),
            }
        return taken

    def _shown(
        self, index: int, queries: KeptPositions, keys: KeptPositions, kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Has the layer's attention calls shown over the whole sequence; returns the mask they
        get.
        """
        _, attention = self.attention[index]
        view = FullLengthView(queries, keys, kwargs.get("attention_mask"), _takes_2d(attention))
        state_of(attention).views[get_ident()] = view
        return {"attention_mask": view.mask_of_part}

    def _up(self, ids: Tensor, closed: Tensor) -> Tensor:
        if ids.ndim != 2:
            raise ProbeError(
                self.called,
                expected="one position a token, to number them anew",
                got=f"{len(ids)} (time, row and column)",
            )
        return ids - closed.to(ids.device)

    def _rotary(
        self, embeddings: tuple[Tensor, ...] | None, ids: Tensor
    ) -> tuple[Tensor, ...] | None:
        """The rotary embeddings of other positions than the model's own."""
        if embeddings is None:
            return None
        rotary: Any = self.model.get_decoder().rotary_emb
        return rotary(embeddings[0], position_ids=ids)


def _takes_2d(attention: Any) -> bool:
    """Flash attention takes no mask over pairs, but one over keys."""
    return "flash" in (attention.config._attn_implementation or "")
