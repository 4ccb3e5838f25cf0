"""Hidden states on their way through layers that run on some positions only.

One flow a stack serves all removals (`token_removal.py`) that are active in it: before a layer it
takes the kept positions, with their part of the mask, their position numbers and their cache; after
it, those that the next layer has again are put back.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from threading import get_ident, local
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, require_tensor
from probe.hooks.block_threads import add_hook, model_block
from probe.hooks.full_length_view import FullLengthView
from probe.hooks.kept_positions import KeptPositions
from probe.hooks.layer_arguments import (
    find_cache,
    hidden_first,
    hidden_states,
    of_kept_tokens,
    replace_hidden_states,
    without_cache,
)
from probe.hooks.layer_input import HiddenStates, LayerInput
from probe.hooks.model_state import BlockEntries, state_of
from probe.hooks.model_structure import LayerStack, text_decoder
from probe.hooks.own_kernel import implementation_of
from probe.hooks.partial_cache import PartialLayer, store, store_whole
from probe.hooks.position_numbers import lowered, own_numbers, with_numbers, without_gaps
from probe.hooks.removal import Mask, Removal
from probe.hooks.stop_forward import attention_call_of
from probe.hooks.unread_filler import require_unread


class _LastKept(local):
    """What `HiddenStateFlow.present` found last in a thread: for these masks, these positions."""

    masks: Sequence[Mask] = ()
    kept: KeptPositions | None = None


class _Entered(local):
    """The layers that a thread's forward has called."""

    layers: frozenset[int] = frozenset()


class HiddenStateFlow:
    """Runs the layers of one stack without what all active removals remove."""

    def __init__(self, model: PreTrainedModel, stack: LayerStack):
        self.model, self.layers, self.stack = model, stack.layers, stack
        # the decoder adds features to vision tokens between layers (DeepStack)
        arguments = inspect.signature(text_decoder(model).forward).parameters
        self.edits_between_layers = any(name.startswith("deepstack") for name in arguments)
        self.removals: BlockEntries[Removal] = BlockEntries()
        self.states = HiddenStates()
        self._last, self._entered = _LastKept(), _Entered()

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
            add_hook(undo, self.model.register_forward_hook, by_first(self._finish))
            for index, layer in enumerate(self.layers):
                enter = by_first(partial(self._before_layer, index))
                leave = by_first(partial(self._after_layer, index))
                add_hook(undo, layer.register_forward_pre_hook, enter, with_kwargs=True)
                add_hook(undo, layer.register_forward_hook, leave)
            yield

    @property
    def called(self) -> str:
        return self.removals.active()[-1].sequences.called

    def _start(self, *hooked: Any) -> None:
        self.states.start()
        self._entered.layers = frozenset()
        self._last.masks, self._last.kept = (), None
        for attention in self.stack.attention.values():
            state_of(attention).views.pop(get_ident(), None)

    def _finish(self, *hooked: Any) -> None:
        """Raises ProbeError where a forward called only some of the layers as modules."""
        missing = {*range(len(self.layers))} - self._entered.layers
        if self._entered.layers and missing:
            raise ProbeError(
                self.called,
                expected="layers whose input it can change",
                got=f"no call of layer {min(missing)} (from 0), although it ran",
                fix="use the model as it was before it was compiled or wrapped",
            )

    def _before_layer(
        self, index: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """The layer's arguments for the kept positions, None to leave them unchanged."""
        sequence = self.removals.active()[0].sequences.running()
        self._entered.layers |= {index}
        args, kwargs = hidden_first(layer, args, kwargs)
        hidden = hidden_states(args, kwargs)
        tokens = sequence.length - sequence.past
        if index == 0 and hidden.shape[:2] != (len(sequence.vision), tokens):
            raise ProbeError(
                self.called,
                expected="an LLM whose layers are given hidden states (batch, position, size)",
                got="several streams of them side by side",
                fix="use drop_vision(mode='mask') or knockout, which change attention alone",
            )
        cache = find_cache(self.called, args, kwargs)
        if sequence.past == 0:
            if index == 0 and sequence.vision.any():
                store_whole(cache)
            return self._prompt_arguments(index, layer, args, kwargs, cache)
        new = KeptPositions.all(len(hidden), tokens, hidden.device)
        changed = self._decoding_arguments(index, new, cache, kwargs)
        return None if changed is None else (args, kwargs | changed)

    def _after_layer(self, index: int, layer: nn.Module, args: tuple, output: Any) -> Any:
        """After a layer: tokens that the next layer has again are re-inserted."""
        kept = self.states.kept
        if kept is None:
            return None
        is_last = index + 1 == len(self.layers)
        next_kept = None if is_last else self.present(index + 1)
        if self.edits_between_layers:  # of all positions
            next_kept = None
        if next_kept is kept or (next_kept is not None and not next_kept.has_more_than(kept)):
            return None
        hidden = self.states.move(output[0] if isinstance(output, tuple) else output, next_kept)
        if next_kept is None:
            self.states.latest = None
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def present(self, index: int) -> KeptPositions | None:
        """The positions that a layer keeps, as decided so far; None for all. The same object as
        long as the same masks are removed.
        """
        masks = [mask for _, mask in self._removed_positions(index)]
        last = self._last
        if list(map(id, masks)) != list(map(id, last.masks)):
            last.masks, last.kept = masks, None
            removed = torch.stack(masks).any(0) if masks else None
            if removed is not None and removed.any():
                last.kept = KeptPositions.without(removed, self._order())
        return last.kept

    def _removed_positions(self, index: int) -> list[tuple[Removal, Mask]]:
        """What each removal removes from a layer, of those that remove something."""
        found = [(each, each.removed_positions(index)) for each in self.removals.active()]
        return [(removal, mask) for removal, mask in found if mask is not None]

    def _gaps(self, index: int) -> Mask | None:
        """The removed positions whose numbers later tokens take over, None where none do."""
        found = self._removed_positions(index)
        gaps = [mask for removal, mask in found if removal.closes_gaps]
        return torch.stack(gaps).any(0) if gaps else None

    def _order(self) -> Int[Tensor, "batch position"] | None:
        orders = (removal.order() for removal in self.removals.active())
        return next((order for order in orders if order is not None), None)

    def _prompt_arguments(
        self, index: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any], cache: Any
    ) -> tuple[tuple, dict[str, Any]] | None:
        """The arguments for a prompt, after the removals have seen what the layer gets."""
        given = hidden_states(args, kwargs)
        dry_run = partial(self._attention_call, index, layer, kwargs)
        layer_input = LayerInput(self.model, index, given, kwargs, self.states, dry_run)
        for removal in self.removals.active():
            removal.before(layer_input)
        kept = self.present(index)
        hidden = self.states.move(layer_input.hidden, kept)
        if kept is None:
            return None if hidden is given else replace_hidden_states(args, kwargs, hidden)
        args, kwargs = of_kept_tokens(kept, args, kwargs)
        changed = kwargs | self._kept_arguments(index, kept, kwargs)
        if self.stack.modules[index] is None and kept.ragged:
            require_unread(self.called, index, layer, kept, hidden, changed)
        if cache is not None and self.stack.modules[index] is not None:
            gaps = self._gaps(index)
            store(cache, index, PartialLayer(kept, None if gaps is None else gaps.sum(1)))
        return replace_hidden_states(args, changed, hidden)

    def _attention_call(
        self, index: int, layer: nn.Module, kwargs: Mapping[str, Any], hidden: Tensor
    ) -> AttentionCall:
        """The attention call that a layer would make on the tokens kept so far."""
        kept = self.present(index)
        arguments = without_cache(kwargs)
        if kept is not self.states.kept:
            everything = self.states.at_full_length(hidden)
            hidden = everything if kept is None else kept.take(everything, 1)
        if kept is not None:
            _, arguments = of_kept_tokens(kept, (), arguments)
            arguments |= self._kept_arguments(index, kept, arguments)
        name = self.stack.modules[index]
        if name is None:
            raise ProbeError(
                self.called,
                expected="a layer with softmax attention",
                got=f"layer {index} (from 0), which has none",
            )
        attention = self.stack.attention[name]
        call = attention_call_of(self.called, layer, {name: attention}, hidden, arguments)
        state_of(attention).views.pop(get_ident(), None)
        return call

    def _kept_arguments(
        self, index: int, kept: KeptPositions, kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Mask and positions of a layer that runs on these positions of a prompt."""
        mask = self._kept_mask(index, kept, kept, kwargs)
        ids = kwargs.get("position_ids")
        gaps = self._gaps(index)
        if gaps is None or ids is None:
            return mask | own_numbers(kept, kwargs)
        numbers = without_gaps(self.called, ids, gaps, self._order())
        return mask | with_numbers(self.model, index, kept.take(numbers, 1), kwargs)

    def _decoding_arguments(
        self, index: int, new: KeptPositions, cache: Any, kwargs: Mapping[str, Any]
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
        mask = self._kept_mask(index, new, layer.present.then(new.length), kwargs)
        ids = kwargs.get("position_ids")
        if layer.closed is None or ids is None:
            return mask
        ids = lowered(self.called, ids, layer.closed[:, None])
        return mask | with_numbers(self.model, index, ids, kwargs)

    def _kept_mask(
        self, index: int, queries: KeptPositions, keys: KeptPositions, kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The mask of an attention call on these positions, which taps are shown at full length."""
        name = self.stack.modules[index]
        mask = kwargs.get("attention_mask")
        if name is None:  # a mask of tokens, for layers whose state passes through all of them
            if mask is None:
                return {"attention_mask": queries.real} if queries.ragged else {}
            if mask.ndim == 2:
                return {"attention_mask": queries.take(mask, 1) * queries.real}
            return {"attention_mask": FullLengthView(queries, keys, mask, False).kernel_mask}
        require_tensor(self.called, mask, name)
        attention = self.stack.attention[name]
        over_keys = "flash" in implementation_of(attention)  # not over pairs
        view = FullLengthView(queries, keys, mask, over_keys)
        state_of(attention).views[get_ident()] = view
        return {"attention_mask": view.kernel_mask}
