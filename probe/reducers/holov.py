"""HoloV: every part of the image keeps some patches, more where there is more to see.

    runs      the N patches of a view, in raster order, in P contiguous runs (not squares); the
              first N mod P runs are one patch longer
    score     1000 a_i + 0.09 v_i
              a_i: attention from the class token, averaged over heads
              v_i: variance of the cosines of patch i and the others of its run, rescaled so that
              their mean over the view is that of a
    quota     floor(T * s_p) of run p, s_p its mean score as a share of all runs' sum; what is left
              of T goes one each to the runs with the highest scores
    kept      the patches of each run with the highest scores

    with HoloV(64, crops=8)(subject): ...

Defined where the text is silent: a run that is smaller than its quota passes the rest on to the
runs with the highest scores that have room.

Source: arXiv 2510.02912 (NeurIPS 2025); obananas/HoloV at 1d2e65e.
"""

from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from probe.errors import at_least
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.patch_selection import PatchSelection

ATTENTION, VARIANCE = 1000, 0.09  # their weights in the score


@dataclass(frozen=True)
class HoloV(PatchSelection):
    """`keep` tokens of each view, spread over `crops` runs of patches."""

    _: KW_ONLY
    crops: int = 8

    def __post_init__(self):
        super().__post_init__()
        at_least("HoloV", "crops", self.crops, 1)

    def choose(self, seen: EncoderOutput, tokens: int) -> Bool[Tensor, "view patch"]:
        attention = seen.patch_attention(seen.output_layer).mean(1)
        kept = select(seen.patch_features, attention, self.crops, tokens)
        return torch.zeros_like(attention, dtype=torch.bool).scatter_(1, kept, True)


@torch.no_grad()
def select(
    features: Float[Tensor, "view patch width"],
    attention: Float[Tensor, "view patch"],
    crops: int,
    tokens: int,
) -> Int[Tensor, "view kept"]:
    """The kept patches, run by run, within a run by falling score."""
    patches = attention.shape[1]
    tokens = min(tokens, patches)
    crops = min(crops, patches)
    sizes = [patches // crops + (run < patches % crops) for run in range(crops)]
    kept = []
    for own_features, own_attention in zip(features, attention.float(), strict=True):
        scores = _scores(own_features, own_attention, sizes)
        runs = scores.split(sizes)
        quotas = _quotas(torch.stack([run.mean() for run in runs]), sizes, tokens)
        start, chosen = 0, []
        for run, size, quota in zip(runs, sizes, quotas, strict=True):
            best = run.argsort(descending=True, stable=True)[:quota]
            chosen.append(best + start)
            start += size
        kept.append(torch.cat(chosen))
    return torch.stack(kept)


def _scores(
    features: Float[Tensor, "patch width"], attention: Float[Tensor, " patch"], sizes: list[int]
) -> Float[Tensor, " patch"]:
    unit = normalize(features.float(), dim=-1)
    variance = torch.cat([_variance_of_cosines(run) for run in unit.split(sizes)])
    mean = variance.mean()
    rescaled = variance * (attention.mean() / mean) if mean > 0 else variance
    return ATTENTION * attention + VARIANCE * rescaled


def _variance_of_cosines(unit: Float[Tensor, "patch width"]) -> Float[Tensor, " patch"]:
    """Of each patch with the others; 0 in a run of one."""
    others = max(len(unit) - 1, 1)
    cosines = unit @ unit.T
    is_self = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    mean = cosines.masked_fill(is_self, 0).sum(1, keepdim=True) / others
    squares = (cosines - mean).square().masked_fill(is_self, 0)
    return squares.sum(1) / others


def _quotas(scores: Float[Tensor, " run"], sizes: list[int], tokens: int) -> list[int]:
    """How many tokens each run keeps, `tokens` in all."""
    share = scores / scores.sum()
    wanted = (share * tokens).floor().long().tolist()
    quotas = [min(count, size) for count, size in zip(wanted, sizes, strict=True)]
    best_first = scores.argsort(descending=True, stable=True).tolist()
    while (missing := tokens - sum(quotas)) > 0:
        with_room = [run for run in best_first if quotas[run] < sizes[run]]
        for run in with_room[:missing]:
            quotas[run] += 1
    return quotas
