"""LLaVA-PruMerge: keep the patches whose attention from the class token is an outlier, and add to
each its most similar patches.

Attention is of the layer after the features, as if it had one head: a = softmax(q_class · k /
√width) over the projections before they are split into heads, without the class token's column. It
is not what the model's own heads compute.

    centres      keep="adaptive": as many as a has outliers, a > Q3 + 1.5 (Q3 - Q1);
                 keep=0.125: that fraction
    plus         also patches spread evenly over the image
    token        F_centre + Σ a_j F_j over the 32 other patches with the keys most similar to the
                 centre's
    last token   Σ a_j F_j over all patches that are not centres

The weights are the raw attention, whose sum is far below 1. Centres come in the order of their
attention, evenly spread ones after them in that of the image. Without an outlier there is only the
last token.

Source: arXiv 2403.15388; 42Shawn/LLaVA-PruMerge at 097c041,
`llava/model/multimodal_encoder/clip_encoder.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from probe.errors import ProbeError, one_of
from probe.reducers.context import Reducer
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.patch_selection import Budget
from probe.reducers.reduction import NONE, Reduction, joined

NEIGHBOURS = 32


@dataclass(frozen=True)
class PruMerge(Reducer):
    """`budget`: with "image" all views of a call share one fraction of outliers, as in the authors'
    code (in `probe.reduced` a call is one image, so that a row of a batch equals the same row
    alone); with "view" each has its own. A given fraction means the same under both.

    Defined where the authors' code fails: `plus` with several views or without an outlier (the last
    token alone); a fraction above a third (every patch is spread); an encoder without a class token
    (the mean attention received).
    """

    keep: float | Literal["adaptive"] = "adaptive"
    plus: bool = False
    budget: Budget = "image"

    def __post_init__(self):
        keep = self.keep
        is_number = isinstance(keep, float | int) and not isinstance(keep, bool)
        is_fraction = is_number and 0 < float(keep) <= 1
        if keep != "adaptive" and not is_fraction:
            expected = "keep='adaptive', or the fraction of patches that is kept"
            raise ProbeError("PruMerge", expected=expected, got=repr(keep))
        one_of("PruMerge", "budget", self.budget, ("view", "image"))

    def reduce(self, seen: EncoderOutput) -> Reduction:
        attention = seen.patch_attention(seen.next_layer.as_one_head())[:, 0]
        if self.budget == "view":
            fractions = [self._fraction(scores) for scores in attention]
        else:
            fractions = [self._fraction(attention)] * len(attention)
        views: list[Reduction] = []
        for view, (scores, fraction) in enumerate(zip(attention, fractions, strict=True)):
            views.append(self._view(seen, view, scores, fraction))
        return joined(views)

    def _fraction(self, attention: Float[Tensor, "*view patch"]) -> float:
        if self.keep != "adaptive":
            return float(self.keep)
        values = attention.flatten().double()
        quartiles = torch.tensor([0.25, 0.75], dtype=torch.double, device=values.device)
        low, high = torch.quantile(values, quartiles)
        return int((values > high + 1.5 * (high - low)).sum()) / values.numel()

    def _centres(self, scores: Float[Tensor, " patch"], fraction: float) -> Int[Tensor, " centre"]:
        """With a given fraction and `plus` some patches are centres twice, as in the authors'
        code.
        """
        patches = len(scores)
        count = int(len(scores) * fraction)
        centres = scores.argsort(descending=True, stable=True)[:count]
        if not self.plus or not count:
            return centres
        step = int(1 / fraction)
        if self.keep == "adaptive":
            spread = torch.arange(0, max(patches - 1, 1), max(step // 3, 1), device=scores.device)
            spread = spread[~torch.isin(spread, centres)]
        else:
            spread = torch.arange(step // 2, patches, step, device=scores.device)[:count]
        return torch.cat([centres, spread])

    def _view(
        self, seen: EncoderOutput, view: int, scores: Float[Tensor, " patch"], fraction: float
    ) -> Reduction:
        first = seen.first_patch
        features = seen.features[view, first:].float()
        keys = normalize(seen.next_layer.as_one_head().key[view, 0, first:].float(), dim=-1)
        centres = self._centres(scores, fraction)
        others = _others(centres, len(scores))
        near, similarity = _neighbours(keys, centres, others)
        added = (scores[near][..., None] * features[near]).sum(1)
        last = (scores[others][:, None] * features[others]).sum(0, keepdim=True)
        tokens = torch.cat([features[centres] + added, last])
        none = centres.new_full((1,), NONE)
        merged_into = _merged_into(near, similarity, centres, len(scores))
        return Reduction(
            tokens[None].to(seen.features.dtype),
            source=torch.cat([centres + first, none])[None],
            kept=(centres + first).sort().values[None],
            merged_into=torch.cat([none.expand(first), merged_into])[None],
            scores=scores[None],
            layer=seen.next_layer.layer,
            first_patch=first,
            count=(len(tokens),),
        )


def _others(centres: Int[Tensor, " centre"], patches: int) -> Int[Tensor, " other"]:
    """The patches that are not centres. For each patch that is a centre twice the first of them is
    missing: the authors' code takes the last (patches - centres) of a sorted list.
    """
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
    others; and their similarity.
    """
    candidates = torch.cat([centres, others])
    similarity = keys[centres] @ keys[candidates].T
    similarity.fill_diagonal_(-torch.inf)  # candidates begin with the centres: not itself
    values, near = similarity.topk(min(NEIGHBOURS, max(len(candidates) - 1, 0)), -1)
    return candidates[near], values


def _merged_into(
    near: Int[Tensor, "centre near"],
    similarity: Float[Tensor, "centre near"],
    centres: Int[Tensor, " centre"],
    patches: int,
) -> Int[Tensor, " patch"]:
    """The token that each patch went into: a centre's own; else, of the centres that it is a
    neighbour of, the most similar; else the last token, which all patches enter.
    """
    count = len(centres)
    if not count:
        return centres.new_zeros(patches)
    best = similarity.new_full((count, patches), -torch.inf)
    value, token = best.scatter_(1, near, similarity).max(0)
    token = token.masked_fill(value == -torch.inf, count)
    number = torch.arange(count, device=centres.device)
    token[centres.flip(0)] = number.flip(0)  # of a patch that is a centre twice, the first token
    return token
