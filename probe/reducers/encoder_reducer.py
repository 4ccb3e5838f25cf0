"""Run a vision encoder and hand what it showed to a reducer: the features, and q and k of two
layers, through the tap.

    model = probe.load("tiny-llava").model
    reduction = encode(model.model.vision_tower, pixel_values, VisionZip(dominant=5, contextual=2))

Works beside the encoder's own kernel (sdpa, flash, eager), leaves it as it was, and keeps no
attention map.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.model_structure import first_patch, layers_of
from probe.reducers.encoder_output import Attention, EncoderOutput
from probe.reducers.reduction import Reduction

Layer = (
    int | Sequence[int]
)  # index into the encoder's hidden states, as `vision_feature_layer` of a config


@runtime_checkable
class EncoderReducer(Protocol):
    """What works on an encoder's output. Frozen dataclasses, so that their `repr` says what was
    done.
    """

    def reduce(self, seen: EncoderOutput) -> Reduction: ...


def encode(
    vision_tower: nn.Module,
    pixel_values: Float[Tensor, "*view channel height width"],
    reducer: EncoderReducer,
    layer: Layer = -2,
) -> Reduction:
    """What a reducer leaves of these views. `layer`: the hidden states that the LLM would read
    (LLaVA: -2).

    The views are one call, as in the authors' code (PruMerge shares its number of centres over a
    call). Raises ProbeError for a compiled encoder, one whose attention can't be seen, and pixels
    of another shape.
    """
    if not hasattr(reducer, "reduce"):
        raise ProbeError(
            "encode",
            expected="a reducer of the encoder's output (VisionZip, PruMerge, ...)",
            got=type(reducer).__name__,
        )
    if not torch.is_tensor(pixel_values) or pixel_values.ndim < 4:
        got = (
            tuple(pixel_values.shape)
            if torch.is_tensor(pixel_values)
            else type(pixel_values).__name__
        )
        raise ProbeError(
            "encode", expected="pixel_values of (view, channel, height, width)", got=str(got)
        )
    parameter = next(vision_tower.parameters())
    pixels = pixel_values.flatten(0, -4).to(parameter.device, parameter.dtype)
    with watched(vision_tower, layer) as watch:
        output = vision_tower(pixels, output_hidden_states=True)
    return reducer.reduce(watch.seen(output.hidden_states))


class EncoderTap:
    """The attention calls of the layers on both sides of the features of one encoder."""

    def __init__(self, tower: nn.Module, layer: Layer, model: nn.Module | None = None):
        stack = layers_of(tower, model)
        count = len(stack.layers)
        chosen = [layer] if isinstance(layer, int) else list(layer)
        if outside := [index for index in chosen if not -count - 1 <= index <= count]:
            expected = f"a layer of the {count + 1} hidden states of the encoder"
            raise ProbeError("reduced", expected=expected, got=str(outside[0]))
        self.chosen, self.first_patch = chosen, first_patch(tower)
        self.made = max(
            max(index % (count + 1) for index in chosen) - 1, 0
        )  # the deepest where there are several
        self.read = min(self.made + 1, count - 1)
        named = list(stack.attention.items())
        self.attention = {named[index][0]: named[index][1] for index in (self.made, self.read)}
        self._layers = {named[index][1]: index for index in (self.made, self.read)}
        self._calls: dict[int, Attention] = {}

    def around(self, call: AttentionCall, kernel: Kernel) -> Output:
        layer = self._layers[call.module]
        self._calls[layer] = Attention(call.query, call.key, call.scaling, layer)
        return kernel(call)

    def refuse(self, seen: AttentionCall | AttentionWeights) -> None:
        raise ProbeError(
            "reduced",
            expected="an encoder whose queries and keys can be seen",
            got=f"{type(seen.module).__name__}, which gives weights only",
        )

    def seen(self, hidden_states: Sequence[Any]) -> EncoderOutput:
        """What the forward that has just ended showed; it is kept no longer."""
        features = torch.cat([hidden_states[index] for index in self.chosen], -1)
        calls, self._calls = self._calls, {}
        return EncoderOutput(features, calls[self.made], calls[self.read], self.first_patch)


@contextmanager
def watched(tower: nn.Module, layer: Layer, model: nn.Module | None = None) -> Iterator[EncoderTap]:
    """Watches an encoder (of a model) while the block lasts, also in forwards that nobody else may
    look at.
    """
    watch = EncoderTap(tower, layer, model)
    options: dict[str, Any] = {"required": False, "innermost": True, "always": True}
    with routed(watch.attention, watch.around, weights=watch.refuse, **options):
        yield watch
