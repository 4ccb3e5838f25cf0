"""VScan: patches spread over the image by a shallow layer, more by a deep one, the others merged
into them.

    local     (T / 2) // 16 patches in each of 16 windows of the grid (4 x 4 windows; 6 x 6 patches
              each where the grid is 24 x 24), by the class token's attention in the shallow layer
    global    the rest of T, by the class token's attention in the layer that the LLM reads
    merged    every other patch is averaged into the kept one that is most similar to it (cosine),
              both after the projector

    with reduced(subject, VScan(192), FastV(layer=16, keep=0.5)): ...    # with its second half:
                                                # one prune by the last token's attention in the LLM

Without a class token attention is averaged over all positions. Grids that 4 does not divide have
windows of unequal sizes; a window that has too few patches gives all of them.

Source: arXiv 2505.22654 (TMLR 2026); Tencent/SelfEvolvingAgent, VScan at a82450e.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from math import isqrt

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from probe.errors import ProbeError, at_least
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.patch_selection import KeptTokens, positions_of, top
from probe.reducers.reduction import Reduction, tokens_of_positions

WINDOWS = 4  # along each side


@dataclass(frozen=True)
class VScan(KeptTokens):
    """`keep` tokens of each view, each the mean of the patches that were merged into it.

    shallow_layer: from 0; None: the one at 1/4 of the encoder's depth, the authors' 5 of 24.

    Raises ProbeError for a layer that the encoder does not have.
    """

    _: KW_ONLY
    shallow_layer: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.shallow_layer is not None:
            at_least("VScan", "shallow_layer", self.shallow_layer, 0)

    def encoder_layers(self, depth: int) -> Sequence[int]:
        return (self._shallow_layer(depth),)

    def _shallow_layer(self, depth: int) -> int:
        return max(depth // 4 - 1, 0) if self.shallow_layer is None else self.shallow_layer

    def reduce(self, seen: EncoderOutput) -> Reduction:
        shallow = seen.patch_attention(seen.layers[self._shallow_layer(seen.depth)]).mean(1)
        deep = seen.patch_attention(seen.output_layer).mean(1)
        chosen = select(shallow, deep, self.tokens(seen.patches, len(seen.features)))
        projected = seen.projected()
        kept = positions_of(chosen) + seen.first_patch
        merged_into = tokens_of_positions(kept, seen.features.shape[1])
        targets = _targets(projected, chosen)
        merged_into[:, seen.first_patch :] = targets
        return Reduction(
            tokens=_means(projected, targets, kept.shape[1]),
            source=kept,
            kept=kept,
            merged_into=merged_into,
            scores=deep,
            layer=seen.output_layer.layer,
            first_patch=seen.first_patch,
            count=(kept.shape[1],) * len(kept),
            is_projected=True,
        )


@torch.no_grad()
def select(
    shallow_attention: Float[Tensor, "view patch"],
    deep_attention: Float[Tensor, "view patch"],
    tokens: int,
) -> Bool[Tensor, "view patch"]:
    """Which patches stay, `tokens` of each view. Attention is averaged over heads."""
    views, patches = deep_attention.shape
    tokens = min(tokens, patches)
    window = _window_of(patches).to(deep_attention.device)
    in_each = tokens // 2 // WINDOWS**2
    chosen = torch.zeros(views, patches, dtype=torch.bool, device=deep_attention.device)
    for number in range(WINDOWS**2):
        own = (window == number).expand(views, -1)
        chosen |= top(shallow_attention, in_each, own)
    # windows are the same in all views, so each view has as many
    return chosen | top(deep_attention, tokens - int(chosen[0].sum()), ~chosen)


@torch.no_grad()
def merge(
    features: Float[Tensor, "view patch width"], mask: Bool[Tensor, "view patch"]
) -> Float[Tensor, "view kept width"]:
    """The kept patches, each the mean of itself and of those that are most similar to it."""
    return _means(features, _targets(features, mask), int(mask[0].sum()))


def _window_of(patches: int) -> Int[Tensor, " patch"]:
    """The number of the window that each patch of a square grid lies in."""
    side = isqrt(patches)
    if side**2 != patches:
        raise ProbeError(
            "VScan", expected="an encoder with a square of patches", got=f"{patches} patches"
        )
    along = torch.arange(side) * WINDOWS // side
    return (along[:, None] * WINDOWS + along).flatten()


def _targets(
    features: Float[Tensor, "view patch width"], mask: Bool[Tensor, "view patch"]
) -> Int[Tensor, "view patch"]:
    """The number of the kept patch that each patch is averaged into; its own for a kept one."""
    unit = normalize(features.float(), dim=-1)
    width = unit.shape[-1]
    kept = positions_of(mask)
    centres = unit.gather(1, kept[..., None].expand(-1, -1, width))
    similarity = unit @ centres.transpose(1, 2)
    nearest = similarity.argmax(-1)
    own_number = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    return nearest.scatter(1, kept, own_number)


def _means(
    features: Float[Tensor, "view patch width"], targets: Int[Tensor, "view patch"], kept: int
) -> Float[Tensor, "view kept width"]:
    """Of the patches that go into each kept one, summed in float32."""
    views, _, width = features.shape
    into = targets[..., None].expand(-1, -1, width)
    total = torch.zeros(views, kept, width, device=features.device)
    total.scatter_add_(1, into, features.float())
    ones = torch.ones_like(targets, dtype=torch.float32)
    count = torch.zeros(views, kept, device=features.device)
    count.scatter_add_(1, targets, ones)
    return (total / count[..., None]).to(features.dtype)
