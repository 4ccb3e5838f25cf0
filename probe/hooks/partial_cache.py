"""Cache layers that hold only some positions of the sequence, and the caches and sliding windows
that allow it.

A `PartialLayer` replaces a layer of a DynamicCache. `token_removal.py` puts it there.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from probe.errors import ProbeError
from probe.hooks.kept_positions import KeptPositions
from probe.hooks.own_kernel import implementation_of
from probe.hooks.whole_layers import first_without_keys


class PartialLayer(DynamicLayer):
    """Keys and values of the kept positions only. It reports the length of the whole sequence.

    `closed`: how many gaps later positions skip in their numbers, where gaps were closed.
    """

    def __init__(self, present: KeptPositions, closed: Int[Tensor, " batch"] | None = None):
        super().__init__()
        self.present: KeptPositions | None = present
        self.closed = closed

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        if self.is_initialized and self.present is not None:
            self.present = self.present.then(key_states.shape[-2])
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        stored = super().get_seq_length()
        return self.present.length if stored and self.present is not None else stored

    def reset(self) -> None:
        super().reset()
        self.present = self.closed = None

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if self.present is not None and self.keys is not None:
            stored = self.keys.shape[-2]
            index = self.present.index[:, :stored]
            self.present = replace(
                self.present, index=index, length=self.present.length + tokens_to_remove
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # pyright: ignore[reportArgumentType]
        self._choose(lambda x: x[beam_idx.to(x.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._choose(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._choose(lambda x: x[indices.to(x.device)])

    def _choose(self, rows: Callable[[Tensor], Tensor]) -> None:
        if self.present is not None:
            self.present = self.present.rows(rows)
        if self.closed is not None:
            self.closed = rows(self.closed)


def store(cache: Any, index: int, layer: PartialLayer) -> None:
    """Replaces a layer of a dynamic cache."""
    while len(cache.layers) <= index:  # a cache without a config grows as layers write to it
        cache.layers.append(cache.layer_class_to_replicate())
    cache.layers[index] = layer


KINDS = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    PartialLayer,
)  # exactly these: subclasses store otherwise


def windows(called: str, model: PreTrainedModel, layers: Iterable[int]) -> dict[int, int | None]:
    """The sliding window of each of these layers, None for full attention. Raises ProbeError for
    layers that are not pure attention, and where any layer reads the keys of an earlier one: it
    would not have those of the tokens that are left out there.
    """
    layers = list(layers)
    reader = first_without_keys(model.config)
    if layers and reader is not None:
        raise ProbeError(
            called,
            expected="layers that keep keys and values of each token, and nothing else",
            got=f"layer {reader} (from 0), which reads those of an earlier layer",
        )
    count = max(layers, default=0) + 1
    kinds = DynamicCache(config=model.config).layers or [DynamicLayer()] * count
    for layer in layers:
        if type(kinds[layer]) not in KINDS:
            kind = type(kinds[layer]).__name__
            raise ProbeError(
                called,
                expected="layers that keep keys and values of each token, and nothing else",
                got=f"{kind} in layer {layer}",
            )
    return {layer: getattr(kinds[layer], "sliding_window", None) for layer in layers}


def store_whole(cache: Any) -> None:
    """Has the empty layers of a cache that would forget what lies outside of a sliding window keep
    everything. The model sizes its masks by one layer; windows then are in the masks alone.
    """
    for index, layer in enumerate(getattr(cache, "layers", ())):
        if type(layer) is DynamicSlidingWindowLayer and not layer.is_initialized:
            cache.layers[index] = DynamicLayer()


class Limit(NamedTuple):
    """How long a sequence may be of which a layer runs on some tokens only. `of_layer`: what it has
    of this length.
    """

    tokens: int
    of_layer: str
    fix: str = ""


def limits(
    called: str, model: PreTrainedModel, attention: Mapping[int, nn.Module], anew: bool = False
) -> dict[int, Limit | None]:
    """That of each of these layers (number -> attention module), None where any length will do.
    `anew`: the tokens that are there are numbered anew, so that a window would be another one.
    """
    found: dict[int, Limit | None] = {}
    for layer, window in windows(called, model, attention).items():
        module: Any = attention[layer]
        by_tokens = anew or "flash" in implementation_of(module)  # no mask over pairs
        scales_by_place = getattr(module, "attn_temperature_tuning", False) and not module.use_rope
        found[layer] = None
        if window is not None and by_tokens:
            fix = "load the model with attn_implementation='sdpa'"
            found[layer] = Limit(window, "the sliding window", fix)
        elif scales_by_place and not anew:  # Llama 4: by the place among the tokens that are there
            tokens = int(module.floor_scale) - 1
            found[layer] = Limit(tokens, "places of queries that the temperature leaves alone,")
    return found


def check_partial(
    called: str, limits: Mapping[int, Limit | None], length: int, cache: Any, fix: str
) -> None:
    """Raises ProbeError for what would go wrong silently: a sequence longer than a layer's limit,
    and a cache that cannot hold only some positions. `fix`: what else helps there.
    """
    for layer, limit in limits.items():
        if limit is not None and length > limit.tokens:
            raise ProbeError(
                called,
                expected=f"at most {limit.tokens} tokens, {limit.of_layer} of layer {layer}",
                got=f"{length}",
                fix=limit.fix or fix,
            )
        kind = (
            type(cache.layers[layer])
            if cache is not None and layer < len(cache.layers)
            else DynamicLayer
        )
        kind = getattr(cache, "layer_class_to_replicate", None) or kind
        if kind not in KINDS:
            raise ProbeError(
                called,
                expected="a DynamicCache",
                got=f"{type(cache).__name__} of {kind.__name__}",
                fix=f"leave cache_implementation out{', or ' * bool(fix)}{fix}",
            )
