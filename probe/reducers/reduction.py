"""What a reducer made of the encoder's output: which tokens are left, what they stand for, what
went into them.

Positions count the encoder's own sequence: with a class token (CLIP) it is 0 and the patches are 1,
2, ... row by row; without one (SigLIP) the patches begin at 0. A view is one square the encoder was
shown: an image, one of its tiles, one frame.

    reduction = encode(tower, pixel_values, VisionZip(54, 10))
    reduction.tokens.shape                       # (view, 64, width)
    reduction.kept[0], reduction.source[0]       # what was kept; what each token stands for, in the order of tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NONE = -1  # no position, no token


@dataclass(frozen=True)
class Reduction:
    """The tokens left of each view. Where views keep different numbers, `count` says how many are
    real: behind them tokens are zeros, and `source` and `kept` are -1."""

    tokens: Float[
        Tensor, "view token width"
    ]  # what the projector gets, in the order of the reducer
    source: Int[
        Tensor, "view token"
    ]  # the position that a token stands for (a merged one: its target), -1: none
    kept: Int[Tensor, "view kept"]  # positions that have a token of their own, ascending
    merged_into: Int[Tensor, "view position"]  # the token that a position went into, -1: left out
    scores: Float[Tensor, "view patch"]  # what the choice was made by, higher is better
    layer: int  # whose attention the scores are, from 0
    first_patch: int  # the position of the first patch: 1 behind a class token
    count: tuple[int, ...]  # of each view

    @property
    def is_kept(self) -> Bool[Tensor, "view token"]:
        """Tokens that stand for a position of their own, as opposed to a merged group."""
        own = (self.source[:, :, None] == self.kept[:, None]) & (self.source[:, :, None] != NONE)
        return own.any(-1)

    @property
    def is_real(self) -> Bool[Tensor, "view token"]:
        """False for the rows behind the last token of a view that has fewer than others."""
        count = torch.tensor(self.count, device=self.tokens.device)
        return torch.arange(self.tokens.shape[1], device=count.device) < count[:, None]


def joined(reductions: Sequence[Reduction]) -> Reduction:
    """The views of several, one after the other."""
    count = tuple(number for reduction in reductions for number in reduction.count)
    values = {
        "count": count,
        "layer": reductions[0].layer,
        "first_patch": reductions[0].first_patch,
    }
    for name in ("tokens", "source", "kept", "merged_into", "scores"):
        values[name] = _stacked(
            [getattr(each, name) for each in reductions], 0 if name == "tokens" else NONE
        )
    return Reduction(**values)


def _stacked(parts: Sequence[Tensor], fill: int) -> Tensor:
    """One below the other, the shorter ones filled up."""
    width = max(part.shape[1] for part in parts)
    behind = [(0, 0) * (part.ndim - 2) + (0, width - part.shape[1]) for part in parts]
    return torch.cat(
        [torch.nn.functional.pad(p, pad, value=fill) for p, pad in zip(parts, behind, strict=True)]
    )
