"""VisionZip: keep the patches that the encoder attends to most, merge the rest into a few by
similarity of keys.

    dominant      the class token and the `dominant` - 1 patches with most attention from it, summed
                  over heads; without a class token the `dominant` patches that all positions attend
                  to most on average (appendix A.2)
    contextual    the rest, in its order: every (rest // contextual)-th is a target, and each other
                  position goes to the target with the most similar key (cosine, keys averaged over
                  heads)

    contextual token = target + mean of those assigned to it     merge="released", the authors' code
                     = mean of target and those assigned to it   merge="mean", the paper's
                     Algorithm 2

Attention, keys and features are all of the layer that the LLM reads. Equal scores: the first
position wins.

    with probe.reduced(subject, VisionZip(dominant=54, contextual=10)): ...

Source: arXiv 2412.04467; dvlab-research/VisionZip at 3151f6d, `visionzip/clip_encoder.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from probe.errors import ProbeError, at_least, one_of
from probe.reducers.context import Reducer
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.patch_selection import Budget
from probe.reducers.reduction import Reduction, take_positions, tokens_of_positions

SHARE = 10 / 64  # of the tokens that are contextual, in the authors' smallest setting


@dataclass(frozen=True)
class VisionZip(Reducer):
    """`dominant` (class token included, as the authors count) + `contextual` tokens of each view,
    or with `budget="image"` of all views of an image, in equal shares (rounded down).

    Defined where the authors' code fails: with 0 contextual tokens the rest is discarded; no more
    tokens are made than there are positions; with 0 dominant tokens the class token is discarded
    too. Any number of layers and views.
    """

    dominant: int
    contextual: int
    merge: Literal["released", "mean"] = "released"
    budget: Budget = "view"

    def __post_init__(self):
        for name in ("dominant", "contextual"):
            at_least("VisionZip", f"{name} tokens", getattr(self, name), 0)
        if self.dominant + self.contextual == 0:
            raise ProbeError(
                "VisionZip", expected="at least one token", got="0 dominant and 0 contextual"
            )
        one_of("VisionZip", "merge", self.merge, ("released", "mean"))
        one_of("VisionZip", "budget", self.budget, ("view", "image"))

    @classmethod
    def of_tokens(cls, tokens: int, budget: Budget = "view") -> "VisionZip":
        """Divided as the authors divide 64 tokens.

        >>> VisionZip.of_tokens(64)
        VisionZip(dominant=54, contextual=10, merge='released', budget='view')
        """
        contextual = max(1, round(SHARE * tokens))
        return cls(tokens - contextual, contextual, budget=budget)

    def of_a_view(self, views: int) -> tuple[int, int]:
        """Dominant and contextual tokens of each of an image's views.

        >>> VisionZip(54, 10).of_a_view(5), VisionZip(540, 100, budget="image").of_a_view(5)
        ((54, 10), (108, 20))
        """
        if self.budget == "view":
            return self.dominant, self.contextual
        whole = self.dominant + self.contextual
        tokens = max(1, whole // views)
        contextual = round(tokens * self.contextual / whole)
        return tokens - contextual, contextual

    def reduce(self, seen: EncoderOutput) -> Reduction:
        attention = seen.patch_attention(seen.output_layer)
        scores = attention.sum(1) if seen.first_patch else attention.mean(1)
        dominant, contextual = self.of_a_view(len(seen.features))
        kept, rest = split(scores, seen, dominant)
        targets, others = split_rest(rest, contextual)
        nearest = _nearest(seen, targets, others)
        merged = self._merged(seen, targets, others, nearest)
        tokens = torch.cat([take_positions(seen.features, kept), merged], 1)
        source = torch.cat([kept, targets], 1)
        merged_into = tokens_of_positions(source, seen.features.shape[1])
        if targets.shape[1]:
            merged_into.scatter_(1, others, nearest + kept.shape[1])
        return Reduction(
            tokens,
            source,
            kept,
            merged_into,
            scores,
            seen.output_layer.layer,
            seen.first_patch,
            count=(tokens.shape[1],) * len(tokens),
        )

    def _merged(
        self, seen: EncoderOutput, targets: Tensor, others: Tensor, nearest: Tensor
    ) -> Float[Tensor, "view target width"]:
        """The contextual tokens, summed in float32."""
        target = take_positions(seen.features, targets)
        if not targets.shape[1] or not others.shape[1]:
            return target
        slots = torch.arange(targets.shape[1], device=nearest.device)
        member = (nearest[:, None] == slots[:, None]).float()  # (view, target, other)
        total = member @ take_positions(seen.features, others).float()
        count = member.sum(-1, keepdim=True)
        if self.merge == "mean":
            return ((target + total) / (count + 1)).to(target.dtype)
        return (target + total / count.clamp(min=1)).to(target.dtype)


def split(
    scores: Float[Tensor, "view patch"], seen: EncoderOutput, dominant: int
) -> tuple[Int[Tensor, "view kept"], Int[Tensor, "view rest"]]:
    """The positions that are kept (the class token is one of them) and all others, both ascending.
    With 0 dominant tokens the class token is in neither.
    """
    first = seen.first_patch
    positions = seen.features.shape[1]
    ranked = scores.argsort(dim=-1, descending=True, stable=True) + first
    best = ranked[:, : max(dominant - first, 0)]
    is_kept = torch.zeros(len(scores), positions, dtype=torch.bool, device=scores.device)
    is_kept.scatter_(1, best, True)
    is_kept[:, :first] = dominant > 0
    # A stable sort of a mask lists the kept positions, then the others, both ascending; unlike
    # `nonzero` it does not wait for the GPU to know a size.
    order = (~is_kept).to(torch.uint8).argsort(dim=1, stable=True)
    kept = min(dominant, positions)
    first_of_rest = kept if dominant else first
    return order[:, :kept], order[:, first_of_rest:]


def split_rest(rest: Int[Tensor, "view rest"], contextual: int) -> tuple[Tensor, Tensor]:
    """The targets among the rest, evenly spread from its start, and all others."""
    length = rest.shape[1]
    count = min(contextual, length)
    step = max(1, length // max(count, 1))
    targets = range(0, count * step, step)
    others = sorted(set(range(length)) - set(targets))
    return rest[:, list(targets)], rest[:, others]


@torch.no_grad()
def _nearest(seen: EncoderOutput, targets: Tensor, others: Tensor) -> Int[Tensor, "view other"]:
    """For each other position the number of the target with the most similar key; 0 where there is
    no target.
    """
    if not targets.shape[1] or not others.shape[1]:
        return torch.zeros_like(others)
    mean_keys = seen.output_layer.key.float().mean(1)
    keys = normalize(mean_keys, dim=-1)
    of_others = take_positions(keys, others)
    of_targets = take_positions(keys, targets)
    similarity = of_others @ of_targets.transpose(1, 2)
    return similarity.argmax(-1)
