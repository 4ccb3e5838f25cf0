"""HiPrune: patches that matter in a middle layer of the encoder, their neighbours, and those that
matter in a deep one.

    received     the attention that a patch gets, averaged over heads and over all queries, the
                 class token's included
    anchors      the round(T * alpha / 5) patches that receive most in the object layer, each with
                 its neighbours at -1, +1, -side and +side in raster order, clamped to the first and
                 last patch (a neighbour may lie at the other end of the next row, as in the
                 authors' code)
    the rest     of T by what patches receive in the layer that the LLM reads

    with HiPrune(64)(subject): ...

Source: arXiv 2508.00553; Danielement321/HiPrune at 6e83a12, where layers count from 1 and T is of
an image, T / views of each view (`budget="image"`).
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from math import isqrt

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.errors import ProbeError, at_least
from probe.reducers.encoder_output import EncoderOutput, LayerAttention
from probe.reducers.patch_selection import PatchSelection, top

GROUP = 5  # an anchor and its four neighbours


@dataclass(frozen=True)
class HiPrune(PatchSelection):
    """`keep` tokens of each view; about `alpha` of them are anchors and their neighbours.

    object_layer: the middle layer, from 0; None: the one at 3/8 of the encoder's depth, the
    authors' 9th of 24.

    Raises ProbeError for an `alpha` outside 0 to 1, and for a layer that the encoder does not have.
    """

    _: KW_ONLY
    alpha: float = 0.1
    object_layer: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ProbeError("HiPrune", expected="alpha of 0 to 1", got=repr(self.alpha))
        if self.object_layer is not None:
            at_least("HiPrune", "object_layer", self.object_layer, 0)

    def encoder_layers(self, depth: int) -> Sequence[int]:
        return (self._object_layer(depth),)

    def _object_layer(self, depth: int) -> int:
        return max(depth * 3 // 8 - 1, 0) if self.object_layer is None else self.object_layer

    def choose(self, seen: EncoderOutput, tokens: int) -> Bool[Tensor, "view patch"]:
        object_layer = seen.layers[self._object_layer(seen.depth)]
        return select(
            _received(object_layer, seen), _received(seen.output_layer, seen), tokens, self.alpha
        )


def _received(attention: LayerAttention, seen: EncoderOutput) -> Float[Tensor, "view patch"]:
    return attention.received().mean(1)[:, seen.first_patch :]


@torch.no_grad()
def select(
    object_layer_received: Float[Tensor, "view patch"],
    deep_received: Float[Tensor, "view patch"],
    tokens: int,
    alpha: float,
) -> Bool[Tensor, "view patch"]:
    """Which patches stay, `tokens` of each view."""
    views, patches = deep_received.shape
    tokens = min(tokens, patches)
    side = isqrt(patches)
    count = min(round(tokens * alpha / GROUP), tokens)
    order = object_layer_received.argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros(views, patches, dtype=torch.bool, device=deep_received.device)
    for offset in (0, -1, 1, -side, side):
        chosen.scatter_(1, (order[:, :count] + offset).clamp(0, patches - 1), True)
    rest = [
        top(row[None], tokens - int(own.sum()), ~own[None])[0]
        for row, own in zip(deep_received, chosen, strict=True)
    ]
    return chosen | torch.stack(rest)
