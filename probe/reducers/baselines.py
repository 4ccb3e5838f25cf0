"""What a reducer must beat: patches at random, patches on a grid, and each half of VisionZip alone.

`keep` is a number of tokens, or the fraction of the patches of a view that is kept.

    with probe.reduced(subject, Random(keep=64, seed=0)): ...
"""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isqrt, sqrt

import torch
from jaxtyping import Int
from torch import Tensor

from probe.errors import ProbeError
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.reduction import NONE, Reduction
from probe.reducers.visionzip import VisionZip

Keep = int | float


@dataclass(frozen=True)
class Random:
    """`keep` patches of each view, drawn without looking: the same ones for every image, others for
    each tile.
    """

    keep: Keep
    seed: int = 0

    def __post_init__(self):
        check("Random", self.keep)

    def reduce(self, seen: EncoderOutput) -> Reduction:
        generator = torch.Generator().manual_seed(
            self.seed
        )  # on the CPU: the same draw on every device
        count = tokens_of(self.keep, seen.patches)
        drawn = [
            torch.randperm(seen.patches, generator=generator)[:count].sort().values
            for _ in seen.features
        ]
        return only(seen, torch.stack(drawn))


@dataclass(frozen=True)
class Grid:
    """`keep` patches of each view, spread evenly: rows as far apart as columns, a row more or less
    where needed.
    """

    keep: Keep

    def __post_init__(self):
        check("Grid", self.keep)

    def reduce(self, seen: EncoderOutput) -> Reduction:
        side = isqrt(seen.patches)
        if side**2 != seen.patches:
            raise ProbeError(
                "Grid",
                expected="an encoder with a square of patches",
                got=f"{seen.patches} patches",
            )
        chosen = torch.tensor(spread(tokens_of(self.keep, seen.patches), side))
        return only(seen, chosen.expand(len(seen.features), -1))


@dataclass(frozen=True)
class DominantOnly:
    """VisionZip without its contextual tokens: `keep` tokens, the class token among them, the rest
    left out.
    """

    keep: Keep

    def __post_init__(self):
        check("DominantOnly", self.keep)

    def reduce(self, seen: EncoderOutput) -> Reduction:
        return VisionZip(tokens_of(self.keep, seen.patches), 0).reduce(seen)


@dataclass(frozen=True)
class ContextualOnly:
    """VisionZip without its dominant tokens: all patches merged into `keep`, nothing chosen by
    attention.
    """

    keep: Keep

    def __post_init__(self):
        check("ContextualOnly", self.keep)

    def reduce(self, seen: EncoderOutput) -> Reduction:
        return VisionZip(0, tokens_of(self.keep, seen.patches)).reduce(seen)


def check(called: str, keep: Keep) -> None:
    """Raises ProbeError for what is neither a number of tokens nor a fraction."""
    number = isinstance(keep, int | float) and not isinstance(keep, bool)
    if not number or not (keep >= 1 if isinstance(keep, int) else 0 < keep <= 1):
        expected = "keep as a number of tokens (64) or the fraction that is kept (0.25)"
        raise ProbeError(called, expected=expected, got=repr(keep))


def tokens_of(keep: Keep, patches: int) -> int:
    """
    >>> tokens_of(0.25, 576), tokens_of(64, 576), tokens_of(1000, 576)
    (144, 64, 576)
    """
    wanted = keep if isinstance(keep, int) else max(1, round(keep * patches))
    return min(wanted, patches)


def spread(count: int, side: int) -> list[int]:
    """So many patches of a square, ascending.

    >>> spread(4, 4)
    [5, 7, 13, 15]
    """
    rows = ceil(sqrt(count))
    bounds = [round(row * count / rows) for row in range(rows + 1)]
    return [
        _middle(row, rows, side) * side + _middle(column, after - before, side)
        for row, (before, after) in enumerate(pairwise(bounds))
        for column in range(after - before)
    ]


def _middle(part: int, parts: int, side: int) -> int:
    """Where the middle of one of several equal parts of a side lies."""
    return (2 * part + 1) * side // (2 * parts)


def only(seen: EncoderOutput, patches: Int[Tensor, "view kept"]) -> Reduction:
    """The reduction that keeps these patches (ascending) as they are and leaves out all else.
    Scores: 1 for kept.
    """
    kept = patches.to(seen.features.device) + seen.first_patch
    tokens = seen.features.gather(1, kept[..., None].expand(-1, -1, seen.features.shape[-1]))
    into = torch.full(seen.features.shape[:2], NONE, device=kept.device)
    into.scatter_(1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept))
    scores = (into[:, seen.first_patch :] != NONE).float()
    count = (kept.shape[1],) * len(kept)
    return Reduction(tokens, kept, kept, into, scores, seen.made.layer, seen.first_patch, count)
