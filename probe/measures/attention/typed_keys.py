"""The keys of one row of a statistic: their types, and sums over the keys of each type.

keys = TypedKeys(ids, type_count=3, query_ids=ids, vision=is_vision, device=device)
keys.sum(weights)                # (head, query, key) -> (head, query, type)

Types are known on the host, so that no device is waited for.
"""

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_SLICES = 16  # up to this number of runs, summing slices is faster than a one-hot product


class TypedKeys:
    """The keys of one row: their types, which of them are vision, and which queries are counted.

    The queries are the last of the positions that keys have. Cross-attention, where queries are not
    keys, is lined up at the end all the same; where there are more queries than keys, the first
    ones have negative positions.

    Args:
        ids: index of each key's type, -1 for padding.
        type_count: number of types.
        query_ids: type that each position counts as when it is a query, -1: not counted.
        vision: which keys are vision.
        device: of the weights that are summed.
    """

    def __init__(
        self,
        ids: Int[np.ndarray, "key"],
        type_count: int,
        query_ids: Int[np.ndarray, "position"],
        vision: Bool[np.ndarray, "key"],
        device: torch.device,
    ):
        self.ids, self.type_count, self.query_ids = ids, type_count, query_ids
        self.vision_keys, self.device = np.flatnonzero(vision), device
        self._runs_of_call: dict[tuple[int, int], np.ndarray] = {}  # of the last kind of call

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def all_runs(self) -> Int[np.ndarray, "run 3"]:
        """(type, start, stop) of each stretch of keys of one type, padding (-1) included."""
        edges = np.flatnonzero(np.diff(self.ids)) + 1
        starts = np.concatenate([[0], edges])[: len(self.ids)]
        stops = np.concatenate([edges, [len(self.ids)]])[: len(starts)]
        return np.stack([self.ids[starts], starts, stops], 1).astype(np.int64)

    def runs(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(type, start, stop) of the stretches of types between two positions, without padding."""
        clipped = [(kind, max(a, start), min(b, stop)) for kind, a, b in self.all_runs.tolist()]
        return [(kind, a, b) for kind, a, b in clipped if kind >= 0 and a < b]

    def runs_of_call(self, first: int, key_count: int) -> Int[np.ndarray, "run 3"]:
        """`all_runs` among the keys of a call, counted from its first one: they cover every key."""
        known = self._runs_of_call.get((first, key_count))
        if known is None:
            kind, start, stop = self.all_runs.T
            start, stop = np.maximum(start - first, 0), np.minimum(stop - first, key_count)
            known = np.stack([kind, start, stop], 1)[start < stop]
            self._runs_of_call = {(first, key_count): known}
        return known

    @cached_property
    def device_ids(self) -> Int[Tensor, "key"]:
        """`ids` on the device."""
        return torch.as_tensor(self.ids, device=self.device)

    @cached_property
    def one_hot(self) -> Float[Tensor, "key type"]:
        is_type = self.ids[:, None] == np.arange(self.type_count)
        return torch.as_tensor(is_type.astype(np.float32), device=self.device)

    @cached_property
    def vision(self) -> Int[Tensor, "vision_key"]:
        """Positions of the vision keys."""
        return torch.as_tensor(self.vision_keys, device=self.device)

    @cached_property
    def is_vision(self) -> Float[Tensor, "key"]:
        is_vision = np.isin(np.arange(len(self.ids)), self.vision_keys)
        return torch.as_tensor(is_vision.astype(np.float32), device=self.device)

    def query_types(self, position: Int[np.ndarray, "query"]) -> Int[np.ndarray, "query"]:
        """The types that the queries at these key positions count as, -1: not counted."""
        return self.query_ids[position + len(self.query_ids) - len(self.ids)]

    def sum(
        self, x: Float[Tensor, "*head query key"], start: int = 0
    ) -> Float[Tensor, "*head query type"]:
        """Sums over the keys of each type; the first key of `x` is at position `start`."""
        stop = start + x.shape[-1]
        runs = self.runs(start, stop)
        if len(runs) > MAX_SLICES:
            return x @ self.one_hot[start:stop].to(x.dtype)
        sums = x.new_zeros(*x.shape[:-1], self.type_count)
        for key_type, first, last in runs:
            sums[..., key_type] += x[..., first - start : last - start].sum(-1)
        return sums
