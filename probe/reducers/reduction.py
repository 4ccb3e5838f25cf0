"""What a reducer leaves: of an encoder's output (`Reduction`), and before one layer of the LLM
(`ReductionStage`).

Positions count the encoder's own sequence: with a class token (CLIP) it is 0 and the patches are 1,
2, ... in raster order; without one (SigLIP) the patches start at 0. A view is one square that the
encoder is given: an image, one of its tiles, one frame.

    reduction = encode(tower, pixel_values, VisionZip(54, 10))
    reduction.tokens.shape                  # (view, 64, width)
    reduction.kept[0], reduction.source[0]  # kept positions; the position each token stands for
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

NONE = -1  # no position, no token


@dataclass(frozen=True)
class Reduction:
    """The tokens left of each view.

    Where views keep different numbers of tokens, `count` says how many are real; the padding after
    them is 0 in `tokens` and -1 in `source` and `kept`.

    tokens: what the projector gets (or makes of it: `is_projected`), in the reducer's order.
    source: the position that a token stands for (of a merged one: its target); -1 for none.
    kept: positions that have a token of their own, ascending.
    merged_into: the token that a position went into; -1 where it was discarded.
    scores: what patches were ranked by, higher is better.
    layer: the layer whose attention the scores are, from 0.
    first_patch: the position of the first patch: 1 after a class token, else 0.
    count: real tokens of each view.
    is_projected: whether `tokens` are what the LLM reads, not what the projector gets.
    """

    tokens: Float[Tensor, "view token width"]
    source: Int[Tensor, "view token"]
    kept: Int[Tensor, "view kept"]
    merged_into: Int[Tensor, "view position"]
    scores: Float[Tensor, "view patch"]
    layer: int
    first_patch: int
    count: tuple[int, ...]
    is_projected: bool = False

    @property
    def is_kept(self) -> Bool[Tensor, "view token"]:
        """True for tokens that stand for one position, False for merged groups and padding."""
        same = self.source[:, :, None] == self.kept[:, None]
        return same.any(-1) & (self.source != NONE)

    @property
    def is_real(self) -> Bool[Tensor, "view token"]:
        """False for the padding of views that have fewer tokens than others."""
        count = torch.tensor(self.count, device=self.tokens.device)
        return torch.arange(self.tokens.shape[1], device=count.device) < count[:, None]


@dataclass(frozen=True)
class ReductionStage:
    """What a reducer inside the LLM left before one layer when the last prompt ran.

    layer: the first layer that runs without the others, from 0.
    kept: the vision tokens that stayed.
    scores: what they were ranked by; NaN for positions that were not ranked.
    left: `kept`, and the positions that now hold a merged token.
    """

    layer: int
    kept: Bool[Tensor, "batch position"]
    scores: Float[Tensor, "batch position"]
    left: Bool[Tensor, "batch position"]


def tokens_of_positions(
    source: Int[Tensor, "view token"], positions: int
) -> Int[Tensor, "view position"]:
    """`merged_into` of a reduction without merging: the token that stands for each
    position, -1 for none.
    """
    tokens = torch.arange(source.shape[1], device=source.device).expand_as(source)
    merged_into = source.new_full((len(source), positions), NONE)
    return merged_into.scatter_(1, source, tokens)


def take_positions(
    values: Float[Tensor, "view position width"], positions: Int[Tensor, "view chosen"]
) -> Float[Tensor, "view chosen width"]:
    """Of each view the values at its chosen positions."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))


def joined(reductions: Sequence[Reduction]) -> Reduction:
    """The views of several reductions of one encoder, one after the other."""
    first = reductions[0]
    return Reduction(
        tokens=_concatenated([each.tokens for each in reductions], 0),
        source=_concatenated([each.source for each in reductions], NONE),
        kept=_concatenated([each.kept for each in reductions], NONE),
        merged_into=_concatenated([each.merged_into for each in reductions], NONE),
        scores=_concatenated([each.scores for each in reductions], NONE),
        layer=first.layer,
        first_patch=first.first_patch,
        count=tuple(number for each in reductions for number in each.count),
        is_projected=first.is_projected,
    )


def _concatenated(parts: Sequence[Tensor], fill: int) -> Tensor:
    """Along the views; the second axis of shorter parts is padded with `fill`."""
    width = max(part.shape[1] for part in parts)
    padded = []
    for part in parts:
        later_axes = (0, 0) * (part.ndim - 2)  # `pad` counts axes from the last one
        padded.append(pad(part, (*later_axes, 0, width - part.shape[1]), value=fill))
    return torch.cat(padded)
