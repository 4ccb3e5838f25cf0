"""LLaVA-PruMerge: keep the patches that stand out in the class token's attention, and add to each
its like.

Attention is of the layer behind the features, as if it had one head: a = softmax(q_class · k /
√width) over unsplit projections, the class token's column left out. It is not what the model's own
heads compute.

    centres      keep="adaptive": as many as a has outliers, a > Q3 + 1.5 (Q3 - Q1); keep=0.125: that fraction
    plus         and patches spread evenly over the image
    token        F_centre + Σ a_j F_j over the 32 other patches whose keys are most similar to the centre's
    the last     Σ a_j F_j over all patches that are no centre

The weights are the raw attention, whose sum is far below 1. Centres come in the order of their
attention, evenly spread ones behind them in that of the image. No outlier: the last token alone.

Source: arXiv 2403.15388; 42Shawn/LLaVA-PruMerge at 097c041,
`llava/model/multimodal_encoder/clip_encoder.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from probe.errors import ProbeError
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.reduction import NONE, Reduction, joined

NEIGHBOURS = 32


@dataclass(frozen=True)
class PruMerge:
    """One share of outliers for all views of a call, as in the authors' code: in `probe.reduced`
    those of one image, so that a row of a batch is what it is alone.

    Where the authors' code stops with an error: `plus` with several views or without an outlier
    (the last token alone); a share above a third (every patch is spread). An encoder without a
    class token: the mean attention received.
    """

    keep: float | Literal["adaptive"] = "adaptive"
    plus: bool = False

    def __post_init__(self):
        fraction = (
            isinstance(self.keep, float | int)
            and not isinstance(self.keep, bool)
            and 0 < self.keep <= 1
        )
        if self.keep != "adaptive" and not fraction:
            expected = "keep='adaptive', or the fraction of patches that is kept"
            raise ProbeError("PruMerge", expected=expected, got=repr(self.keep))

    def reduce(self, seen: EncoderOutput) -> Reduction:
        attention = seen.sought(seen.read.as_one_head())[:, 0]
        share = self._share(attention)
        views = [self._view(seen, view, scores, share) for view, scores in enumerate(attention)]
        return joined(views)

    def _share(self, attention: Float[Tensor, "view patch"]) -> float:
        if self.keep != "adaptive":
            return float(self.keep)
        values = attention.flatten().double()
        low, high = torch.quantile(
            values, torch.tensor([0.25, 0.75], dtype=torch.double, device=values.device)
        )
        return int((values > high + 1.5 * (high - low)).sum()) / values.numel()

    def _centres(self, scores: Float[Tensor, " patch"], share: float) -> Int[Tensor, " centre"]:
        """Patches, some of them twice with a given share and `plus`, as in the authors' code."""
        patches, wanted = len(scores), int(len(scores) * share)
        centres = scores.argsort(descending=True, stable=True)[:wanted]
        if not self.plus or not wanted:
            return centres
        step = int(1 / share)
        if self.keep == "adaptive":
            spread = torch.arange(0, max(patches - 1, 1), max(step // 3, 1), device=scores.device)
            spread = spread[~torch.isin(spread, centres)]
        else:
            spread = torch.arange(step // 2, patches, step, device=scores.device)[:wanted]
        return torch.cat([centres, spread])

    def _view(
        self, seen: EncoderOutput, view: int, scores: Float[Tensor, " patch"], share: float
    ) -> Reduction:
        features = seen.features[view, seen.first_patch :].float()
        keys = normalize(seen.read.as_one_head().key[view, 0, seen.first_patch :].float(), dim=-1)
        centres = self._centres(scores, share)
        others = _others(centres, len(scores))
        near, likeness = _neighbours(keys, centres, others)
        added = (scores[near][..., None] * features[near]).sum(1)
        last = (scores[others][:, None] * features[others]).sum(0, keepdim=True)
        tokens = torch.cat([features[centres] + added, last])[None].to(seen.features.dtype)
        first = seen.first_patch
        source = torch.cat([centres + first, centres.new_full((1,), NONE)])[None]
        kept = (centres + first).sort().values[None]
        into = torch.cat(
            [centres.new_full((first,), NONE), _taken_by(near, likeness, centres, len(scores))]
        )[None]
        return Reduction(
            tokens, source, kept, into, scores[None], seen.read.layer, first, (tokens.shape[1],)
        )


def _others(centres: Int[Tensor, " centre"], patches: int) -> Int[Tensor, " other"]:
    """The patches that are no centre. As many of the first of them are missing as there are centres
    named twice: the authors' code takes so many from the end."""
    is_centre = torch.zeros(patches, dtype=torch.bool, device=centres.device)
    is_centre[centres] = True
    others = (~is_centre).nonzero()[:, 0]
    return others[max(len(others) - max(patches - len(centres), 0), 0) :]


def _neighbours(
    keys: Float[Tensor, "patch width"],
    centres: Int[Tensor, " centre"],
    others: Int[Tensor, " other"],
) -> tuple[Int[Tensor, "centre near"], Float[Tensor, "centre near"]]:
    """The patches with the most similar keys for each centre, among the other centres and the
    others.
    """
    candidates = torch.cat([centres, others])
    similar = keys[centres] @ keys[candidates].T
    itself = torch.arange(len(centres), device=keys.device)
    similar[itself, itself] = -torch.inf
    likeness, near = similar.topk(min(NEIGHBOURS, max(len(candidates) - 1, 0)), -1)
    return candidates[near], likeness


def _taken_by(
    near: Int[Tensor, "centre near"],
    likeness: Float[Tensor, "centre near"],
    centres: Int[Tensor, " centre"],
    patches: int,
) -> Int[Tensor, " patch"]:
    """The token that each patch went into: a centre's own; else of all that took it in the most
    similar; else the last, which takes in all."""
    best = likeness.new_full((len(centres), patches), -torch.inf)
    best.scatter_(1, near, likeness)
    value, token = (
        best.max(0)
        if len(centres)
        else (best.new_full((patches,), -torch.inf), centres.new_zeros(patches))
    )
    token = torch.where(value == -torch.inf, len(centres), token)
    token[centres.flip(0)] = torch.arange(len(centres), device=centres.device).flip(
        0
    )  # the first of two copies
    return token
