"""DivPrune: the tokens that are as different from each other as a greedy choice can make them.

    D_ij = 1 - cos(f_i, f_j), f the projected features of one view
    first pick     the token whose nearest other token is farthest: argmax_i min_{j != i} D_ij
    then always    the token whose nearest picked one is farthest:  argmax_i min_{j picked} D_ij

Equal distances: the first position wins. The picked tokens stay in the order of their positions.

    with DivPrune(64)(subject): ...

Source: arXiv 2503.02175 (CVPR 2025), equations 3 to 5 and algorithm 1; built from the paper.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.reducers.cosine import Cosines
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.patch_selection import PatchSelection


@dataclass(frozen=True)
class DivPrune(PatchSelection):
    """`keep` tokens of each view (or of the image: `budget`)."""

    def choose(self, seen: EncoderOutput, tokens: int) -> Bool[Tensor, "view patch"]:
        projected = seen.projected()
        chosen = torch.zeros(projected.shape[:2], dtype=torch.bool, device=projected.device)
        for view, features in enumerate(projected):
            chosen[view, select(features, tokens)] = True
        return chosen


@torch.no_grad()
def select(features: Float[Tensor, "token width"], keep: int | float) -> Int[Tensor, " kept"]:
    """The picked tokens in the order of picking. `keep`: their number, or a fraction of them.

    >>> line = torch.tensor([[1.0, 0.0], [0.99, 0.01], [0.0, 1.0], [0.7, 0.7]])
    >>> select(line, 3)
    tensor([2, 0, 3])
    """
    count = keep if isinstance(keep, int) else round(keep * len(features))
    count = min(count, len(features))
    if not count:
        return torch.zeros(0, dtype=torch.long, device=features.device)
    cosines = Cosines(features)
    token = cosines.nearest_other().argmin() if len(features) > 1 else torch.tensor(0)
    token = token.to(features.device)
    picked = [token]
    closest = cosines.row(token).clone()  # of each token: the cosine with its nearest picked one
    for _ in range(count - 1):
        closest.index_fill_(0, token[None], torch.inf)  # never picked again
        token = closest.argmin()
        picked.append(token)
        torch.maximum(closest, cosines.row(token), out=closest)
    return torch.stack(picked)
