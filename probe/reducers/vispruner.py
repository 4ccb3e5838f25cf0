"""VisPruner: some patches by the class token's attention, the others so that no two are alike.

    important    the int(T * important_ratio) patches with most attention from the class token,
                 averaged over heads; without a class token, from all positions
    diverse      of the others, in order of falling attention: those at even ranks are compared with
                 those at odd ranks, and the 8 of them that are most similar (cosine of features) to
                 some odd one are dropped; again with what is left (the evens by falling
                 similarity, then the odds), until T - int(T * important_ratio) remain

    with VisPruner(64)(subject): ...

Defined where the authors' code stops: with fewer than 8 at even ranks only those are dropped that
there are.

Source: arXiv 2412.01818 (ICCV 2025); Theia-4869/VisPruner at aefa01a.
"""

from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from probe.errors import ProbeError
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.patch_selection import PatchSelection, top

AT_ONCE = 8  # patches that a round drops


@dataclass(frozen=True)
class VisPruner(PatchSelection):
    """`keep` tokens of each view, `important_ratio` of them by attention.

    Raises ProbeError for a ratio outside 0 to 1.
    """

    _: KW_ONLY
    important_ratio: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.important_ratio <= 1:
            raise ProbeError(
                "VisPruner", expected="important_ratio of 0 to 1", got=repr(self.important_ratio)
            )

    def choose(self, seen: EncoderOutput, tokens: int) -> Bool[Tensor, "view patch"]:
        attention = seen.patch_attention(seen.output_layer)
        return select(seen.patch_features, attention, tokens, self.important_ratio)


@torch.no_grad()
def select(
    features: Float[Tensor, "view patch width"],
    cls_attention: Float[Tensor, "view head patch"],
    tokens: int,
    important_ratio: float,
) -> Bool[Tensor, "view patch"]:
    """Which patches stay, `tokens` of each view."""
    tokens = min(tokens, features.shape[1])
    important = int(tokens * important_ratio)
    attention = cls_attention.float().mean(1)
    ranked = attention.argsort(dim=1, descending=True, stable=True)
    chosen = top(attention, important)
    for view, own_features in enumerate(features):
        diverse = _most_diverse(own_features, ranked[view, important:], tokens - important)
        chosen[view, diverse] = True
    return chosen


def _most_diverse(
    features: Float[Tensor, "patch width"], ranked: Int[Tensor, " other"], count: int
) -> Int[Tensor, " diverse"]:
    unit = normalize(features.float(), dim=-1)[ranked]
    similarity = unit @ unit.T
    left = torch.arange(len(ranked), device=ranked.device)
    while len(left) > count:
        even = left[::2]
        odd = left[1::2]
        drop = min(AT_ONCE, len(left) - count, len(even))
        if len(odd):
            closest = similarity[even[:, None], odd].amax(1)
            even = even[closest.argsort(descending=True, stable=True)]
        left = torch.cat([even[drop:], odd])
    return ranked[left]
