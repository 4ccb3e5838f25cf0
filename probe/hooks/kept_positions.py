"""The positions of a sequence that a layer keeps, and tensors over them from and to full length.

`KeptPositions` is the table; `FullLengthView` shows an attention call over these positions as one
over the whole sequence. `token_removal.py` runs layers with them, and `partial_cache.py` stores
their keys and values.

>>> import torch
>>> kept = KeptPositions.without(torch.tensor([[False, True, True, False], [False, False, True, False]]))
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

from probe.hooks.attention_call import AttentionCall, as_bool, with_hidden


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
        place = torch.arange(absent.shape[1], device=absent.device).expand_as(absent)
        first = torch.where(absent, -1, place if order is None else order).argsort(
            dim=1, stable=True
        )
        index = torch.where(absent, -1, place).gather(1, first)
        return cls(index[:, int(absent.sum(1).min()) :], absent.shape[1], order is None)

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
        return (
            self
            if self.ascending
            else replace(self, index=self.index.sort(dim=1).values, ascending=True)
        )

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
        table = self.index.new_full(
            (len(self.index), self.length + 1), -1
        )  # the first column takes the filler
        slots = torch.arange(self.index.shape[1], device=self.index.device).expand_as(self.index)
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


@dataclass(frozen=True)
class FullLengthView:
    """Shows attention calls over kept positions as full-length calls (`attention_tap.layouts`)."""

    queries: KeptPositions
    keys: KeptPositions
    own_mask: Tensor | None  # the model's own, over the whole sequence
    mask_2d: bool  # whether the kernel takes a mask over keys instead of one over pairs

    @cached_property
    def mask(self) -> Tensor | None:
        """The model's full-length mask. Where tokens run in another order than that of positions,
        it is over pairs, and a query sees what runs before it.
        """
        own = self.own_mask
        if self.keys.ascending or self.queries.length < self.keys.length:
            return own
        slot = self.keys.slot
        mask = (slot[:, :, None] >= slot[:, None])[:, None]
        if own is None:
            return mask
        if own.ndim == 2:
            return mask & own.bool()[:, None, None]
        real = own[..., -1:, :]  # the last query sees all that is not padding
        return with_hidden(real, ~mask)

    @property
    def _visible(self) -> Bool[Tensor, "batch 1 position position"]:
        """What each query could see: by the order in which tokens run, or by the model's own mask
        where query or key is removed.
        """
        assert self.mask is not None
        there = self.keys.slot >= 0
        both = (there[:, :, None] & there[:, None])[:, None]
        own = self._causal(self.keys.length) if self.own_mask is None else self.own_mask
        own = own.bool()[:, None, None] & self._causal(self.keys.length) if own.ndim == 2 else own
        return torch.where(both, as_bool(self.mask), as_bool(own))

    @property
    def mask_of_part(self) -> Tensor | None:
        """What the kernel gets."""
        return self.part_of_mask(
            self.own_mask if self.mask_2d or self.own_mask is None else self.mask
        )

    def __call__(
        self, call: AttentionCall, routes: Callable, kernel: Callable
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the routes on the full-length call, and the kernel on its kept positions."""
        whole = self.whole(call)

        def on_part(edited: AttentionCall) -> tuple[Tensor, Tensor | None]:
            output, weights = kernel(self.part(edited, whole, call))
            if weights is not None:
                weights = self.keys.put(
                    self.queries.put(weights, weights.new_zeros(()), 2), weights.new_zeros(()), 3
                )
            return self.queries.put(output, output.new_zeros(()), 1), weights

        output, weights = routes(whole, on_part)
        if weights is not None:
            weights = self.keys.take(self.queries.take(weights, 2), 3)
        return self.queries.take(output, 1), weights

    def whole(self, call: AttentionCall) -> AttentionCall:
        """The call at full length; removed positions are masked as queries and as keys."""
        zero = call.query.new_zeros(())
        mask, there = self.mask, self.keys.slot >= 0
        if mask is None and not self.mask_2d:
            mask = self._causal(self.keys.length)
        if mask is None or mask.ndim == 2:
            mask = there if mask is None else mask.bool() & there
        else:
            mask = with_hidden(mask, ~there[:, None, None])
        own = self.own_mask if self.mask is self.own_mask else self._visible
        return replace(
            call,
            query=self.queries.put(call.query, zero, 2),
            key=self.keys.put(call.key, zero, 2),
            value=self.keys.put(call.value, zero, 2),
            effective_mask=mask,
            model_mask=own,
            causal=self.queries.length > 1,
            active_queries=self.queries.slot >= 0,
        )

    def part(
        self, edited: AttentionCall, whole: AttentionCall, call: AttentionCall
    ) -> AttentionCall:
        """The kept positions of the full-length call as the routes edited it; the module's own
        call where they did not.
        """
        if edited is whole:
            return call
        return replace(
            call,
            key=call.key if edited.key is whole.key else self.keys.take(edited.key, 2),
            value=call.value if edited.value is whole.value else self.keys.take(edited.value, 2),
            effective_mask=call.effective_mask
            if edited.effective_mask is whole.effective_mask
            else self.part_of_mask(edited.effective_mask),
        )

    def part_of_mask(self, mask: Tensor | None) -> Tensor | None:
        """A full-length mask over the kept positions, in the form that the kernel takes. Filler is
        visible to itself only.
        """
        if mask is None:
            if not self.keys.ragged:
                return None  # the order is kept: still causal
            mask = self.keys.real.new_ones(1, self.keys.length) if self.mask_2d else self.mask
            mask = self._causal(self.keys.length) if mask is None else mask
        if mask.ndim == 2:
            return self.keys.take(mask, 1).bool() & self.keys.real
        mask = self.queries.take(self.keys.take(mask, 3), 2)
        if not self.keys.ragged:
            return mask
        mask = with_hidden(mask, ~self.keys.real[:, None, None])
        itself = torch.eye(*mask.shape[2:], dtype=torch.bool, device=mask.device)
        alone = ~self.queries.real[:, None, :, None] & itself
        return mask | alone if mask.dtype == torch.bool else mask.masked_fill(alone, 0)

    def _causal(self, length: int) -> Bool[Tensor, "1 1 query key"]:
        """The mask that None stands for."""
        key = torch.arange(length, device=self.keys.index.device)
        return (key <= key[length - self.queries.length :, None])[None, None]
