"""Baselines that a reducer must beat: random patches, patches on a grid, and each half of
VisionZip.

`keep` is a number of tokens (int), or the fraction of the patches of a view that is kept (float).

    with probe.reduced(subject, Random(keep=64, seed=0)): ...
"""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isqrt, sqrt

import torch
from jaxtyping import Int
from torch import Tensor

from probe.errors import ProbeError
from probe.reducers.context import Reducer
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.reduction import NONE, Reduction, take_positions, tokens_of_positions
from probe.reducers.visionzip import VisionZip


@dataclass(frozen=True)
class Baseline(Reducer):
    """A method whose one parameter is how many tokens of each view are kept."""

    keep: int | float

    def __post_init__(self):
        number = isinstance(self.keep, int | float) and not isinstance(self.keep, bool)
        valid = number and (self.keep >= 1 if isinstance(self.keep, int) else 0 < self.keep <= 1)
        if not valid:
            expected = "keep as a number of tokens (64) or the fraction that is kept (0.25)"
            raise ProbeError(type(self).__name__, expected=expected, got=repr(self.keep))

    def tokens(self, patches: int) -> int:
        """
        >>> Grid(0.25).tokens(576), Grid(64).tokens(576), Grid(1000).tokens(576)
        (144, 64, 576)
        """
        wanted = self.keep if isinstance(self.keep, int) else max(1, round(self.keep * patches))
        return min(wanted, patches)


@dataclass(frozen=True)
class Random(Baseline):
    """`keep` random patches of each view: the same ones for every image, other ones for each
    tile.
    """

    seed: int = 0

    def reduce(self, seen: EncoderOutput) -> Reduction:
        generator = torch.Generator().manual_seed(self.seed)  # CPU: the same on every device
        count = self.tokens(seen.patches)
        drawn = [torch.randperm(seen.patches, generator=generator)[:count] for _ in seen.features]
        return select_patches(seen, torch.stack(drawn).sort().values)


@dataclass(frozen=True)
class Grid(Baseline):
    """`keep` patches of each view, spread evenly: rows as far apart as columns, up to rounding."""

    def reduce(self, seen: EncoderOutput) -> Reduction:
        side = isqrt(seen.patches)
        if side**2 != seen.patches:
            raise ProbeError(
                "Grid",
                expected="an encoder with a square of patches",
                got=f"{seen.patches} patches",
            )
        chosen = torch.tensor(spread(self.tokens(seen.patches), side))
        return select_patches(seen, chosen.expand(len(seen.features), -1))


@dataclass(frozen=True)
class DominantOnly(Baseline):
    """VisionZip without contextual tokens: `keep` tokens, the class token among them; the rest is
    discarded.
    """

    def reduce(self, seen: EncoderOutput) -> Reduction:
        return VisionZip(self.tokens(seen.patches), 0).reduce(seen)


@dataclass(frozen=True)
class ContextualOnly(Baseline):
    """VisionZip without dominant tokens: all patches are merged into `keep`, whatever attention
    they get.
    """

    def reduce(self, seen: EncoderOutput) -> Reduction:
        return VisionZip(0, self.tokens(seen.patches)).reduce(seen)


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


def select_patches(seen: EncoderOutput, patches: Int[Tensor, "view kept"]) -> Reduction:
    """The reduction that keeps these patches (ascending) unchanged and discards all others. Scores:
    1 for kept, else 0.
    """
    kept = patches.to(seen.features.device) + seen.first_patch
    merged_into = tokens_of_positions(kept, seen.features.shape[1])
    return Reduction(
        tokens=take_positions(seen.features, kept),
        source=kept,
        kept=kept,
        merged_into=merged_into,
        scores=(merged_into[:, seen.first_patch :] != NONE).float(),
        layer=seen.output_layer.layer,
        first_patch=seen.first_patch,
        count=(kept.shape[1],) * len(kept),
    )
