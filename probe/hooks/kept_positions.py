"""The positions of a sequence that a layer keeps, and tensors over them from and to full length.

`token_removal.py` runs layers with them, `partial_cache.py` stores their keys and values, and
`full_length_view.py` shows their attention calls as calls over the whole sequence.

>>> import torch
>>> removed = torch.tensor([[False, True, True, False], [False, False, True, False]])
>>> kept = KeptPositions.without(removed)
>>> kept.index                           # -1: filler in a row that keeps fewer than another
tensor([[-1,  0,  3],
        [ 0,  1,  3]])
>>> kept.put(torch.tensor([[9, 5, 6], [1, 2, 3]]), torch.tensor(0), 1)
tensor([[5, 0, 0, 6],
        [1, 2, 0, 3]])
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class KeptPositions:
    """The kept positions, in the order in which they run. Rows with fewer start with -1."""

    index: Int[Tensor, "batch row"]
    length: int  # positions of the whole sequence
    ascending: bool = True  # whether they run in the order in which they stand

    @classmethod
    def without(
        cls,
        absent: Bool[Tensor, "batch position"],
        order: Int[Tensor, "batch position"] | None = None,
    ) -> "KeptPositions":
        """All positions but these. They run by ascending `order`, by default by position."""
        length = absent.shape[1]
        position = torch.arange(length, device=absent.device).expand_as(absent)
        rank = position if order is None else order
        # Removed positions get the lowest rank, so that they come first and are cut off below; a
        # row that keeps fewer than another is left with some of them, as filler (-1).
        running = torch.where(absent, -1, rank).argsort(dim=1, stable=True)
        index = torch.where(absent, -1, position).gather(1, running)
        fewest_removed = int(absent.sum(1).min())
        return cls(index[:, fewest_removed:], length, order is None)

    @classmethod
    def all(cls, batch: int, length: int, device: torch.device | str) -> "KeptPositions":
        return cls(torch.arange(length, device=device).expand(batch, -1), length)

    def then(self, count: int) -> "KeptPositions":
        """Followed by `count` new positions, all of them kept."""
        new = torch.arange(self.length, self.length + count, device=self.index.device)
        index = torch.cat([self.index, new.expand(len(self.index), -1)], 1)
        return KeptPositions(index, self.length + count, self.ascending)

    @cached_property
    def sorted(self) -> "KeptPositions":
        """The same in the order of positions."""
        if self.ascending:
            return self
        return replace(self, index=self.index.sort(dim=1).values, ascending=True)

    def has_more_than(self, other: "KeptPositions") -> bool:
        """Whether a position is kept here that another table does not keep."""
        return bool(((self.slot >= 0) & (other.slot < 0)).any())

    def rows(self, choose: Callable[[Tensor], Tensor]) -> "KeptPositions":
        """The table for other rows of the batch."""
        return replace(self, index=choose(self.index))

    @cached_property
    def real(self) -> Bool[Tensor, "batch row"]:
        return self.index >= 0

    @cached_property
    def ragged(self) -> bool:
        return not bool(self.real.all())

    @cached_property
    def slot(self) -> Int[Tensor, "batch position"]:
        """The column of `index` that holds each position, -1 for removed positions."""
        rows, columns = self.index.shape
        slots = torch.arange(columns, device=self.index.device).expand_as(self.index)
        table = self.index.new_full((rows, self.length + 1), -1)
        # One column to the right, so that filler (-1) lands in the first one, which is cut off.
        return table.scatter(1, self.index + 1, slots)[:, 1:]

    def take(self, x: Tensor, dim: int) -> Tensor:
        """The kept positions of a full-length tensor, whose first axis is the batch (or 1)."""
        return x.take_along_dim(_along(self.index.clamp(min=0), x, dim), dim)

    def put(self, part: Tensor, whole: Tensor, dim: int) -> Tensor:
        """`whole` with its kept positions from `part`: the inverse of `take`."""
        slot = _along(self.slot, part, dim)
        return torch.where(slot >= 0, part.take_along_dim(slot.clamp(min=0), dim), whole)


def _along(index: Int[Tensor, "batch row"], x: Tensor, dim: int) -> Tensor:
    """An index table in the shape that picks along one axis of `x`."""
    shape = [1] * x.ndim
    shape[0], shape[dim] = index.shape
    return index.to(x.device).view(shape)
