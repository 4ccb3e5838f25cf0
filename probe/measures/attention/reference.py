"""The naive reference: the whole attention maps, and every number of the record computed from them
in the open.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.hooks.attention_call import AttentionCall
from probe.measures.attention.statistic import AttentionStatistic


def plain_table(
    weights: Float[Tensor, "head query key"],
    visible: Bool[Tensor, "query key"],
    names: tuple[str, ...],
    ids: Int[np.ndarray, "key"],
    query_ids: Int[np.ndarray, "query"],
    vision: Bool[np.ndarray, "key"],
) -> dict[str, np.ndarray]:
    """The table of `probe.measures.attention.statistic`, computed from a whole attention map, one
    pair of types at a time, in float64.

    `query_ids`: the type under which each query is counted, -1: not at all.
    """
    a_ij, sees = weights.double().cpu().numpy(), visible.cpu().numpy()
    heads, count = len(a_ij), len(names)
    table = {
        name: np.full((heads, count, count), np.nan)
        for name in ("mass", "share", "lift", "head_entropy")
    }
    table |= {
        "entropy": np.full((count, count), np.nan),
        "received": np.full((count, vision.sum()), np.nan),
    }
    sees_vision = sees[:, vision].any(1)
    for a in range(count):
        queries = query_ids == a
        with np.errstate(
            invalid="ignore"
        ):  # a key that no query of A sees has received nothing: 0 / 0
            got = a_ij[:, queries][:, :, vision].mean(0).sum(0)
            table["received"][a] = got / sees[queries][:, vision].sum(0)
        for b in range(count):
            keys = ids == b
            sum_of = a_ij[:, :, keys].sum(-1)  # (head, query)
            number = sees[:, keys].sum(-1)
            rows = queries & (number > 0)
            if rows.any():
                table["mass"][:, a, b] = sum_of[:, queries].sum(-1) / rows.sum()
                even = number[rows] / sees[rows].sum(-1)
                table["lift"][:, a, b] = (sum_of[:, rows] / even).mean(-1)
            if (queries & sees_vision).any():
                table["share"][:, a, b] = sum_of[:, queries & sees_vision].mean(-1)
            rows = queries & (number >= 2)
            table["entropy"][a, b] = _entropy(a_ij[:, rows][:, :, keys].mean(0))
            for head in range(heads):
                table["head_entropy"][head, a, b] = _entropy(a_ij[head, rows][:, keys])
    return table


def _entropy(p: Float[np.ndarray, "query key"]) -> float:
    """Mean over the queries that give the type anything."""
    total = p.sum(-1, keepdims=True)
    p = (p / np.where(total > 1e-30, total, np.nan))[total[:, 0] > 1e-30]
    return (
        -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1).mean() if len(p) else np.nan
    )


def difference(table: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> float:
    """The largest difference between two tables; infinite where one has a number and the other
    none.
    """
    worst = 0.0
    for name, expected in plain.items():
        if (np.isnan(table[name]) != np.isnan(expected)).any():
            return float("inf")
        scale = (
            np.maximum(1, np.abs(expected)) if name == "lift" else 1
        )  # lift has no upper bound: relative above 1
        error = np.abs(table[name] - expected) / scale
        worst = max(worst, float(np.nanmax(error, initial=0)))
    return worst


@dataclass
class _Map:
    """A whole attention map of one row, put together from calls: pre-fusion sees the image first,
    then the words.
    """

    weights: Float[Tensor, "head position key"]
    visible: Bool[Tensor, "position key"]
    asked: Int[np.ndarray, "position"]  # `query_ids` of the positions that were queries so far
    ids: Int[np.ndarray, "key"]
    query_ids: Int[np.ndarray, "position"]
    vision: Bool[np.ndarray, "key"]

    @classmethod
    def of(cls, statistic: AttentionStatistic, row: int, heads: int) -> "_Map":
        ids, query_ids = statistic.ids[row], statistic.query_ids[row]
        shape = len(query_ids), len(ids)
        return cls(
            torch.zeros(heads, *shape),
            torch.zeros(*shape, dtype=torch.bool),
            np.full_like(query_ids, -1),
            ids,
            query_ids,
            statistic.vision[row],
        )

    def put(
        self,
        weights: Float[Tensor, "head query key"],
        visible: Bool[Tensor, "query key"],
        first: int,
    ) -> None:
        """The queries of a call, whose keys begin at `first` and end where the queries do."""
        queries, keys = visible.shape
        last = first + keys + len(self.query_ids) - len(self.ids)
        at = slice(last - queries, last)
        self.weights[:, at, first : first + keys] = weights.cpu()
        self.visible[at, first : first + keys] = visible.cpu()
        self.asked[at] = self.query_ids[at]

    def table(self, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        return plain_table(self.weights, self.visible, names, self.ids, self.asked, self.vision)


def _whole_map(
    call: AttentionCall, row: int, visible: Bool[Tensor, "query key"]
) -> Float[Tensor, "head query key"]:
    """The map in float32, for half precision: eager attention rounds its own to the model's
    dtype.
    """
    key = call.key[row].float().repeat_interleave(call.query.shape[1] // call.key.shape[1], 0)
    scores = call.query[row].float() @ key.transpose(1, 2) * call.scaling
    return (
        scores.masked_fill(~visible, float("-inf")).softmax(-1).nan_to_num(0)
    )  # a row of padding sees nothing
