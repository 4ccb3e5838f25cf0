"""The keys of one row of a statistic: their types, and sums over the keys of each type.

keys = TypedKeys(ids, type_count=3, query_ids=ids, vision=vision_positions)
keys.sum(weights)                # (head, query, key) -> (head, query, type)
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

MAX_SLICES = 16  # up to this number of runs, summing slices is faster than a one-hot product


@dataclass(frozen=True)
class TypedKeys:
    """The keys of one row: their types, which of them are vision, and which queries are counted.

    The queries are the last of the positions that keys have. Cross-attention, where queries are not
    keys, is lined up at the end all the same; where there are more queries than keys, the first
    ones have negative positions.
    """

    ids: Int[Tensor, "key"]  # index of the key's type, -1 for padding
    type_count: int
    query_ids: Int[Tensor, "position"]  # type that each query counts as, -1: not counted
    vision: Int[Tensor, "vision_key"]  # positions of the vision keys
    runs: tuple[tuple[int, int, int], ...] = field(init=False)  # (type, start, stop)
    one_hot: Float[Tensor, "key type"] = field(init=False)
    is_vision: Float[Tensor, "key"] = field(init=False)

    def __post_init__(self):
        ids = self.ids.tolist()
        changes = [i for i in range(1, len(ids)) if ids[i] != ids[i - 1]]
        edges = pairwise([0, *changes, len(ids)])
        runs = tuple(
            (ids[start], start, stop) for start, stop in edges if stop > start and ids[start] >= 0
        )
        is_vision = torch.zeros(len(ids), device=self.ids.device)
        with_padding = functional.one_hot(self.ids + 1, self.type_count + 1)  # column 0: padding
        object.__setattr__(self, "runs", runs)
        object.__setattr__(self, "one_hot", with_padding[:, 1:].float())
        object.__setattr__(self, "is_vision", is_vision.index_fill_(0, self.vision, 1))

    def to(self, device: torch.device) -> "TypedKeys":
        """The same keys on another device."""
        if self.ids.device == device:
            return self
        ids, query_ids, vision = (x.to(device) for x in (self.ids, self.query_ids, self.vision))
        return TypedKeys(ids, self.type_count, query_ids, vision)

    def query_types(self, position: Int[Tensor, "query"]) -> Int[Tensor, "query"]:
        """The types that the queries at these key positions count as, -1: not counted."""
        return self.query_ids[position + len(self.query_ids) - len(self.ids)]

    def query_one_hot(self, position: Int[Tensor, "query"]) -> Float[Tensor, "query type"]:
        """The same as a one-hot matrix. All of these queries must be counted."""
        return functional.one_hot(self.query_types(position), self.type_count).float()

    def sum(
        self, x: Float[Tensor, "*head query key"], start: int = 0
    ) -> Float[Tensor, "*head query type"]:
        """Sums over the keys of each type; the first key of `x` is at position `start`."""
        stop = start + x.shape[-1]
        runs = [
            (key_type, max(first, start), min(last, stop))
            for key_type, first, last in self.runs
            if first < stop and last > start
        ]
        if len(runs) > MAX_SLICES:
            return x @ self.one_hot[start:stop].to(x.dtype)
        sums = x.new_zeros(*x.shape[:-1], self.type_count)
        for key_type, first, last in runs:
            sums[..., key_type] += x[..., first - start : last - start].sum(-1)
        return sums
