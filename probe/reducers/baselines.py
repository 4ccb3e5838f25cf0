"""Baselines that a reducer must beat: random patches, patches on a grid, and each half of
VisionZip.

`keep` is a number of tokens (int), or the fraction of the patches of a view that is kept (float);
`budget` says whether a number is meant for each view or for the whole image.

    with probe.reduced(subject, Random(keep=64, seed=0)): ...
"""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isqrt, sqrt

import torch

from probe.errors import ProbeError, at_least, shown
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.patch_selection import KeptTokens, select_patches
from probe.reducers.reduction import Reduction
from probe.reducers.visionzip import VisionZip


@dataclass(frozen=True)
class Random(KeptTokens):
    """`keep` random patches of each view: the same ones for every image, other ones for each
    tile.
    """

    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        at_least("Random", "a seed", self.seed, 0)
        if self.seed >= 2**63:
            raise ProbeError("Random", expected="a seed below 2**63", got=shown(self.seed))

    def reduce(self, seen: EncoderOutput) -> Reduction:
        generator = torch.Generator().manual_seed(int(self.seed))  # CPU: the same on every device
        count = self.tokens(seen.patches, len(seen.features))
        drawn = [torch.randperm(seen.patches, generator=generator)[:count] for _ in seen.features]
        return select_patches(seen, torch.stack(drawn).sort().values)


@dataclass(frozen=True)
class Grid(KeptTokens):
    """`keep` patches of each view, spread evenly: rows as far apart as columns, up to rounding."""

    def reduce(self, seen: EncoderOutput) -> Reduction:
        side = isqrt(seen.patches)
        if side**2 != seen.patches:
            raise ProbeError(
                "Grid",
                expected="an encoder with a square of patches",
                got=f"{seen.patches} patches",
            )
        chosen = torch.tensor(spread(self.tokens(seen.patches, len(seen.features)), side))
        return select_patches(seen, chosen.expand(len(seen.features), -1))


@dataclass(frozen=True)
class DominantOnly(KeptTokens):
    """VisionZip without contextual tokens: `keep` tokens, the class token among them; the rest is
    discarded.
    """

    def reduce(self, seen: EncoderOutput) -> Reduction:
        return VisionZip(self.tokens(seen.patches, len(seen.features)), 0).reduce(seen)


@dataclass(frozen=True)
class ContextualOnly(KeptTokens):
    """VisionZip without dominant tokens: all patches are merged into `keep`, whatever attention
    they get.
    """

    def reduce(self, seen: EncoderOutput) -> Reduction:
        return VisionZip(0, self.tokens(seen.patches, len(seen.features))).reduce(seen)


def spread(count: int, side: int) -> list[int]:
    """The raster positions, ascending, of `count` evenly spread patches of a square.

    >>> spread(4, 4)
    [5, 7, 13, 15]
    """
    rows = ceil(sqrt(count))
    bounds = [round(row * count / rows) for row in range(rows + 1)]
    return [
        _middle(row, rows, side) * side + _middle(column, stop - start, side)
        for row, (start, stop) in enumerate(pairwise(bounds))
        for column in range(stop - start)
    ]


def _middle(part: int, parts: int, side: int) -> int:
    """The middle of one of several equal parts of a side."""
    return (2 * part + 1) * side // (2 * parts)
