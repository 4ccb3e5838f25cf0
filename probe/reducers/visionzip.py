"""VisionZip: keep the patches that the encoder attends to most, merge the rest into a few by the
likeness of keys.

    dominant      the class token and the `dominant` - 1 patches with most attention from it, summed over heads; without
                  a class token the `dominant` patches that all positions attend to most on average (appendix A.2)
    contextual    the rest, in its order: every (rest // contextual)-th is a target, and each other one goes to the
                  target with the most similar key (cosine, keys averaged over heads)

    contextual token = target + mean of those that came to it         merge="released", the authors' code
                     = mean of target and those that came to it       merge="mean", the paper's Algorithm 2

Attention, keys and features are all of the layer that the LLM reads. Equal scores: the first
position wins.

    with probe.reduced(subject, VisionZip(dominant=54, contextual=10)): ...

Source: arXiv 2412.04467; dvlab-research/VisionZip at 3151f6d, `visionzip/clip_encoder.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import normalize

from probe.errors import ProbeError
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.reduction import NONE, Reduction


@dataclass(frozen=True)
class VisionZip:
    """`dominant` (class token included, as the authors count) + `contextual` tokens of each view.

    Where the authors' code stops with an error: without contextual tokens the rest is left out; at
    most as many tokens as there are positions are made; 0 dominant tokens leave the class token
    out, too. Any number of layers and views.
    """

    dominant: int
    contextual: int
    merge: Literal["released", "mean"] = "released"

    def __post_init__(self):
        for name in ("dominant", "contextual"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ProbeError(
                    "VisionZip",
                    expected=f"{name} as a number of tokens, 0 or more",
                    got=repr(value),
                )
        if self.dominant + self.contextual == 0:
            raise ProbeError(
                "VisionZip", expected="at least one token", got="0 dominant and 0 contextual"
            )
        if self.merge not in ("released", "mean"):
            raise ProbeError(
                "VisionZip", expected="merge='released' or 'mean'", got=repr(self.merge)
            )

    def reduce(self, seen: EncoderOutput) -> Reduction:
        scores = seen.sought(seen.made)
        scores = scores.sum(1) if seen.first_patch else scores.mean(1)
        kept, rest = split(scores, seen, self.dominant)
        targets, others = split_rest(rest, self.contextual)
        nearest = _nearest(seen, targets, others)
        tokens = torch.cat(
            [_at(seen.features, kept), self._merged(seen, targets, others, nearest)], 1
        )
        source = torch.cat([kept, targets], 1)
        merged_into = torch.full(seen.features.shape[:2], NONE, device=kept.device)
        merged_into.scatter_(
            1, source, torch.arange(source.shape[1], device=kept.device).expand_as(source)
        )
        if targets.shape[1]:
            merged_into.scatter_(1, others, nearest + kept.shape[1])
        count = (tokens.shape[1],) * len(tokens)
        return Reduction(
            tokens, source, kept, merged_into, scores, seen.made.layer, seen.first_patch, count
        )

    def _merged(
        self, seen: EncoderOutput, targets: Tensor, others: Tensor, nearest: Tensor
    ) -> Tensor:
        """The contextual tokens, summed in float32: (view, target, width)."""
        target = _at(seen.features, targets)
        if not targets.shape[1] or not others.shape[1]:
            return target
        slots = torch.arange(targets.shape[1], device=nearest.device)
        member = (nearest[:, None] == slots[:, None]).float()  # (view, target, other)
        total, count = member @ _at(seen.features, others).float(), member.sum(-1, keepdim=True)
        if self.merge == "mean":
            return ((target + total) / (count + 1)).to(target.dtype)
        return (target + total / count.clamp(min=1)).to(target.dtype)


def split(
    scores: Tensor, seen: EncoderOutput, dominant: int
) -> tuple[Int[Tensor, "view kept"], Int[Tensor, "view rest"]]:
    """The positions that are kept, ascending, and all others. One of the kept is the class
    token.
    """
    first, whole = seen.first_patch, seen.features.shape[1]
    best = (
        scores.argsort(dim=-1, descending=True, stable=True)[:, : max(dominant - first, 0)] + first
    )
    chosen = torch.zeros(len(scores), whole, dtype=torch.bool, device=scores.device)
    chosen.scatter_(1, best, True)
    chosen[:, :first] = dominant > 0
    # a stable sort of a mask lists the chosen, then the others, both ascending, with no size to
    # wait for
    order = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)
    kept = min(dominant, whole)
    return order[:, :kept], order[
        :, kept if dominant else first :
    ]  # 0 dominant: nobody wants the class token


def split_rest(rest: Int[Tensor, "view rest"], contextual: int) -> tuple[Tensor, Tensor]:
    """The targets among the rest, evenly spread from its start, and all others."""
    count = min(contextual, rest.shape[1])
    step = max(1, rest.shape[1] // max(count, 1))
    targets = range(0, count * step, step)
    others = sorted(set(range(rest.shape[1])) - set(targets))
    return rest[:, list(targets)], rest[:, others]


def _nearest(seen: EncoderOutput, targets: Tensor, others: Tensor) -> Int[Tensor, "view other"]:
    """The target with the most similar key for each other position; all 0 where there is none to
    choose.
    """
    if not targets.shape[1] or not others.shape[1]:
        return torch.zeros_like(others)
    with torch.no_grad():
        keys = normalize(seen.made.key.float().mean(1), dim=-1)
        return (_at(keys, others) @ _at(keys, targets).transpose(1, 2)).argmax(-1)


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """(view, position, width) at (view, chosen)."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))
