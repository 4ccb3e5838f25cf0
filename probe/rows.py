"""Run decoder layers on some positions of a sequence only, as if the others were not there.

The rows that stay keep their original positions: their rotary embeddings, and their rows and columns of the mask, are
taken out of the model's own. Their keys and values go to a cache layer that holds only them and answers with the length
of the whole sequence, because the model sizes every mask and position by the length of one layer. What is absent when
the prompt runs stays absent in decoding.

Whoever looks at such a layer through `tap` sees a call over the whole sequence, in which nobody asks from or sees the
absent positions.

    with without_vision("drop_vision", model, stack, layers):     # `interventions/drop.py`, how="remove"
        model.generate(**inputs)

Source: the mechanism was studied first on 13 families, `facts/transformers.md` section 3.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from probe.errors import ProbeError
from probe.locate import Stack
from probe.present import Layout, PartialLayer, Present
from probe.sequences import Sequence, Sequences
from probe.tap import is_untouched, layouts

CACHE_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, PartialLayer)  # exactly these: subclasses store otherwise


@contextmanager
def without_vision(called: str, model: PreTrainedModel, stack: Stack, layers: tuple[int, ...]) -> Iterator[None]:
    """Runs these layers without vision rows, which come back behind each block of consecutive layers as they were
    before it.

    Raises ProbeError before anything runs for a cache that is not dynamic, a sequence longer than the window of one of
    the layers, and layers that are not of attention only.
    """
    windows = dict(zip(layers, _windows(called, model, layers), strict=True))
    sequences = Sequences(called, model, stack.layers[0], check=partial(_check, called, windows), whole_prompt=True)
    edges = [0, *(i for i, (a, b) in enumerate(pairwise(layers), 1) if b != a + 1), len(layers)]
    blocks = [_Block(stack, sequences, layers[a:b]) for a, b in pairwise(edges)]
    with sequences.followed(), ExitStack() as undo:
        for block in blocks:
            undo.enter_context(block.hooked())
        yield


def _windows(called: str, model: PreTrainedModel, layers: tuple[int, ...]) -> list[int | None]:
    """The sliding window of each layer, None for full attention."""
    kinds = DynamicCache(config=model.config).layers or [DynamicLayer()] * (max(layers) + 1)
    for layer in layers:
        if type(kinds[layer]) not in CACHE_LAYERS:
            kind = type(kinds[layer]).__name__
            raise ProbeError(called, expected="layers of attention alone", got=f"{kind} in layer {layer}")
    return [getattr(kinds[layer], "sliding_window", None) for layer in layers]


def _check(called: str, windows: dict[int, int | None], sequence: Sequence, cache: Any) -> None:
    """Refuses what would go wrong silently."""
    if not sequence.vision.any():
        return
    for layer, window in windows.items():
        if window is not None and sequence.length > window:
            raise ProbeError(
                called, expected=f"at most {window} tokens, the sliding window of layer {layer}",
                got=f"{sequence.length}", fix="use how='mask'",
            )  # fmt: skip
        kind = type(cache.layers[layer]) if cache is not None and layer < len(cache.layers) else DynamicLayer
        kind = getattr(cache, "layer_class_to_replicate", None) or kind
        if kind not in CACHE_LAYERS:
            raise ProbeError(called, expected="a DynamicCache", got=f"{type(cache).__name__} of {kind.__name__}",
                             fix="leave cache_implementation out, or use how='mask'")  # fmt: skip


class _Block:
    """Consecutive layers that run without vision rows."""

    def __init__(self, stack: Stack, sequences: Sequences, layers: tuple[int, ...]):
        attention = list(stack.attention.values())
        self.layers = {layer: (stack.layers[layer], attention[layer]) for layer in layers}
        self.sequences, self.first = sequences, layers[0]
        self.whole: Tensor | None = None  # (batch, position, hidden) as it was before the first of the layers

    @contextmanager
    def hooked(self) -> Iterator[None]:
        with ExitStack() as undo:
            for index, (layer, attention) in self.layers.items():
                enter = layer.register_forward_pre_hook(partial(self._enter, index, attention), with_kwargs=True)
                undo.callback(enter.remove)
                undo.callback(layouts.pop, attention, None)
            undo.callback(layer.register_forward_hook(self._leave).remove)
            yield

    def _enter(self, index: int, attention: nn.Module, layer: nn.Module, args: tuple, kwargs: dict) -> Any:
        """Arguments of the layer over the positions that are present, None to leave them as they are."""
        layouts.pop(attention, None)
        if is_untouched():
            return None
        sequence = self.sequences.running()
        if "present" not in sequence.memo:  # decided by the prompt, for the whole sequence
            sequence.memo["present"] = Present.without(sequence.vision) if sequence.vision.any() else None
        if sequence.memo["present"] is None:
            return None
        if sequence.past == 0:
            return self._prompt(index, attention, sequence.memo["present"], args, kwargs)
        present = kwargs["past_key_values"].layers[index].present
        new = sequence.length - sequence.past
        everything_new = Present.all(len(sequence.vision), new, present.index.device)
        layout = Layout(everything_new, present.then(new), kwargs.get("attention_mask"), _takes_2d(attention))
        return args, kwargs | self._shown(attention, layout)

    def _prompt(self, index: int, attention: nn.Module, present: Present, args: tuple, kwargs: dict) -> Any:
        """The same as `_enter`, for the forward that fills the cache: hidden states and positions are taken out too."""
        if (cache := kwargs.get("past_key_values")) is not None:
            _store(cache, index, PartialLayer(present))
        taken = self._shown(attention, Layout(present, present, kwargs.get("attention_mask"), _takes_2d(attention)))
        if (ids := kwargs.get("position_ids")) is not None:
            parts = [present.take(x, 1) for x in (ids if ids.ndim == 3 else [ids])]  # time, row and column, or one
            taken["position_ids"] = torch.stack(parts) if ids.ndim == 3 else parts[0]
        if (embeddings := kwargs.get("position_embeddings")) is not None:
            taken["position_embeddings"] = tuple(present.take(x, 1) for x in embeddings)
        if index != self.first:
            return args, kwargs | taken
        self.whole = hidden = args[0] if args else kwargs["hidden_states"]
        if args:
            return (present.take(hidden, 1), *args[1:]), kwargs | taken
        return args, kwargs | taken | {"hidden_states": present.take(hidden, 1)}

    @staticmethod
    def _shown(attention: nn.Module, layout: Layout) -> dict[str, Any]:
        """Has the layer's attention calls shown over the whole sequence; returns the mask they get."""
        layouts[attention] = layout
        return {"attention_mask": layout.part_of_mask(layout.own_mask)}

    def _leave(self, layer: nn.Module, args: tuple, output: Any) -> Any:
        """Behind the last layer: the rows that stayed, among the others as they were."""
        if is_untouched():
            return None
        sequence, whole, self.whole = self.sequences.running(), self.whole, None
        if whole is None or sequence.past or sequence.memo["present"] is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = sequence.memo["present"].put(hidden, whole.to(hidden.device), 1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _store(cache: Any, index: int, layer: PartialLayer) -> None:
    while len(cache.layers) <= index:  # a cache without a config grows as layers write to it
        cache.layers.append(cache.layer_class_to_replicate())
    cache.layers[index] = layer


def _takes_2d(attention: Any) -> bool:
    """Flash attention takes no mask over pairs, but one over keys."""
    return "flash" in (attention.config._attn_implementation or "")
