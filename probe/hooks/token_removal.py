"""Run decoder layers on some positions of a sequence only, as if the others were not there.

The kept tokens keep their original positions (or close the gaps, where a method does): their rotary
embeddings, and their rows and columns of the mask, are taken from the model's own. Their keys and
values go to a cache layer that holds only them but reports the length of the whole sequence,
because the model sizes every mask and position by the length of one layer. What is removed from the
prompt stays removed in decoding. Removed tokens keep their last hidden state; they are re-inserted
after the last layer.

Several removals may be active in a model: a layer runs on the positions that none of them removes.
A tap on such a layer receives full-length tensors; removed positions are masked as queries and as
keys.

    with removed(model, stack, removal):    # `interventions/drop.py`, `reducers/llm_reducer.py`
        model.generate(**inputs)
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
from probe.hooks.full_length_view import FullLengthView
from probe.hooks.kept_positions import KeptPositions
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
from probe.hooks.stop_forward import StopForward

Mask = Bool[Tensor, "batch position"]


class Removal(ABC):
    """What is removed from the layers of a model. `sequences` must be followed meanwhile."""

    closes_gaps = False  # whether later tokens take over the position numbers of removed ones

    def __init__(self, sequences: SequenceTracker):
        self.sequences = sequences

    @abstractmethod
    def removed_positions(self, layer: int) -> Mask | None:
        """The positions that a layer runs without, as decided so far; None for none."""

    def before(self, entrance: "LayerInput") -> None:  # noqa: B027  # most decide earlier
        """Called before every layer of a prompt's forward. May decide what is removed from this
        layer on, and change its hidden states.
        """

    def order(self) -> Int[Tensor, "batch position"] | None:
        """The order in which tokens run, None for the order of positions."""
        return None


@model_block
def removed(model: PreTrainedModel, stack: LayerStack, removal: Removal) -> Iterator[None]:
    """While the block lasts, the stack's layers run without what this removal (and every other
    active one) removes.
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
    """The positions that the running layer keeps, None where nothing is removed."""
    flow = state_of(stack.layers[0]).flow
    return None if flow is None else flow.current


class LayerInput:
    """The input of a layer in a prompt's forward: the hidden states of the tokens kept so far."""

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

    @property
    def model(self) -> PreTrainedModel:
        return self._flow.model

    def whole(self) -> Float[Tensor, "batch position hidden"]:
        """All positions; removed ones with their last hidden state."""
        return self._flow.whole_of(self.hidden)

    def change(self, whole: Float[Tensor, "batch position hidden"]) -> None:
        """Replaces the hidden states of all positions, removed ones included."""
        present = self._flow.current
        self.hidden = whole if present is None else present.take(whole, 1)
        self._flow.whole = whole

    def positions(self) -> tuple[Tensor, ...] | None:
        """The model's rotary embeddings of all positions: cosines and sines."""
        return self._kwargs.get("position_embeddings")

    def attention_call(self) -> AttentionCall:
        """Dry run: the attention call this layer would make on the tokens kept so far. Its output
        is discarded.
        """
        flow, found = self._flow, []
        present, hidden = flow.present(self.index), self.hidden
        if present is not flow.current:
            hidden = self.whole() if present is None else present.take(self.whole(), 1)
        name, attention = flow.attention[self.index]

        def keep(call: AttentionCall, kernel: Kernel) -> Any:
            found.append(call)
            raise StopForward

        kwargs = without_cache(self._kwargs)
        kwargs |= flow.arguments(self.index, present, kwargs)
        with (
            torch.no_grad(),
            suppress(StopForward),
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


class _Running(local):
    """The state of a thread's forward. Each thread has its own values."""

    current: KeptPositions | None = None
    whole: Tensor | None = None
    known: tuple[list[Mask], KeptPositions | None] = ([], None)


class HiddenStateFlow:
    """The hidden states on their way through the layers of one stack, under all active
    removals.
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
        """The positions that this thread's running layer keeps, None for all."""
        return self._running.current

    @current.setter
    def current(self, present: KeptPositions | None) -> None:
        self._running.current = present

    @property
    def whole(self) -> Float[Tensor, "batch position hidden"] | None:
        """All positions; removed ones with their last hidden state."""
        return self._running.whole

    @whole.setter
    def whole(self, hidden: Tensor | None) -> None:
        self._running.whole = hidden

    def _start(self, *hooked: Any) -> None:
        """Before a forward nothing is removed; an interrupted one may have left its state."""
        self._running.__dict__.clear()
        for _, attention in self.attention:
            state_of(attention).views.pop(get_ident(), None)

    def whole_of(self, hidden: Tensor) -> Tensor:
        if self.current is None or self.whole is None:
            return hidden
        return self.current.put(hidden, self.whole.to(hidden.device), 1)

    def _enter(self, index: int, layer: nn.Module, args: tuple, kwargs: dict) -> Any:
        """The layer's arguments for the kept positions, None to leave them unchanged."""
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
        """After a layer: tokens that the next layer has again are re-inserted."""
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
        """The positions that a layer keeps, as decided so far; None for all."""
        removals = self.removals.active()
        absent = [
            mask for removal in removals if (mask := removal.removed_positions(index)) is not None
        ]
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
        """The hidden states of these positions instead of the current ones."""
        if present is self.current:
            return hidden
        self.whole = whole = self.whole_of(hidden)
        self.current = present
        return whole if present is None else present.take(whole, 1)

    def _gaps(self, index: int) -> Mask | None:
        """The removed positions whose numbers later tokens take over, None where none do."""
        gone = [
            mask
            for one in self.removals.active()
            if one.closes_gaps and (mask := one.removed_positions(index)) is not None
        ]
        return torch.stack(gone).any(0) if gone else None

    def _order(self) -> Int[Tensor, "batch position"] | None:
        orders = (removal.order() for removal in self.removals.active())
        return next((order for order in orders if order is not None), None)

    def _without_gaps(self, ids: Tensor, gaps: Mask) -> Int[Tensor, "batch position"]:
        """Position ids counted over the tokens outside the gaps, in the order in which they
        run.
        """
        there = KeptPositions.without(gaps, self._order())
        moved = self._up(ids, gaps.long().cumsum(1))
        return there.put(there.sorted.take(moved, 1), moved, 1)

    def arguments(
        self, index: int, present: KeptPositions | None, kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Mask and positions of a layer that runs on these positions of a prompt. Its attention
        calls are shown at full length.
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
        """The same for new tokens after those in the cache; None where the cache is complete."""
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
        """Shows the layer's attention calls at full length; returns the mask they run with."""
        _, attention = self.attention[index]
        view = FullLengthView(queries, keys, kwargs.get("attention_mask"), _takes_2d(attention))
        state_of(attention).views[get_ident()] = view
        return {"attention_mask": view.kernel_mask}

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
