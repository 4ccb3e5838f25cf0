"""Methods that keep some patches of an image unchanged and discard all others: how many, and what
is left.

    @dataclass(frozen=True)
    class LargestNorm(PatchSelection):
        def choose(self, seen, tokens):
            length = seen.patch_features.norm(dim=-1)
            return top(length, tokens)

    with LargestNorm(64)(subject): ...                         # 64 tokens of each view
    with LargestNorm(640, budget="image")(subject): ...        # 640 of all its tiles together
"""

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.errors import ProbeError, one_of
from probe.reducers.context import Reducer
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.reduction import NONE, Reduction, take_positions, tokens_of_positions

Budget = Literal["view", "image"]


@dataclass(frozen=True)
class KeptTokens(Reducer):
    """How many tokens are left: `keep` as a number of tokens (64), or as the fraction of patches
    that is kept (0.25).

    budget: "view": `keep` tokens of each view, as most authors count; "image": of all views of an
    image together, each view getting an equal share (a number that does not divide is rounded
    down). A fraction means the same under both.

    Raises ProbeError for another `keep` or `budget`.
    """

    keep: int | float
    _: KW_ONLY
    budget: Budget = "view"

    def __post_init__(self):
        called = type(self).__name__
        is_whole = isinstance(self.keep, int) and not isinstance(self.keep, bool)
        is_count = is_whole and self.keep >= 1
        is_fraction = isinstance(self.keep, float) and 0 < self.keep <= 1
        if not is_count and not is_fraction:
            expected = "keep as a number of tokens (64) or the fraction that is kept (0.25)"
            raise ProbeError(called, expected=expected, got=repr(self.keep))
        one_of(called, "budget", self.budget, ("view", "image"))

    def tokens(self, patches: int, views: int = 1) -> int:
        """The number of tokens of each of an image's views of `patches` patches.

        >>> keep = KeptTokens(64)
        >>> keep.tokens(576), KeptTokens(0.25).tokens(576), KeptTokens(1000).tokens(576)
        (64, 144, 576)
        >>> keep.tokens(576, views=5), KeptTokens(640, budget="image").tokens(576, views=5)
        (64, 128)
        """
        if isinstance(self.keep, float):
            return max(1, round(self.keep * patches))
        share = self.keep if self.budget == "view" else max(1, self.keep // views)
        return min(share, patches)


@dataclass(frozen=True)
class PatchSelection(KeptTokens, ABC):
    """A method whose result is a choice of patches. Subclasses implement `choose`."""

    @abstractmethod
    def choose(self, seen: EncoderOutput, tokens: int) -> Bool[Tensor, "view patch"]:
        """Which patches of each view stay: `tokens` of each."""

    def reduce(self, seen: EncoderOutput) -> Reduction:
        chosen = self.choose(seen, self.tokens(seen.patches, len(seen.features)))
        return select_patches(seen, positions_of(chosen))


def top(
    scores: Float[Tensor, "view patch"],
    count: int,
    among: Bool[Tensor, "view patch"] | None = None,
) -> Bool[Tensor, "view patch"]:
    """The `count` patches of each view with the highest scores; of equal ones the first.

    >>> top(torch.tensor([[3.0, 1.0, 3.0, 2.0]]), 2)
    tensor([[ True, False,  True, False]])
    """
    if among is not None:
        scores = scores.masked_fill(~among, -torch.inf)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
    return chosen if among is None else chosen & among


def positions_of(chosen: Bool[Tensor, "view patch"]) -> Int[Tensor, "view kept"]:
    """The chosen patches of each view, ascending; each view has as many."""
    count = int(chosen[0].sum())
    order = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, :count]


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
