"""Sums over the keys of each type, for every query of one row of an attention call.

`streaming.py` says by which way they are filled;
`statistic.py` makes the numbers of a record from them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.measures.attention.query_plan import QueryPlan
from probe.measures.attention.typed_keys import TypedKeys

NOTHING = torch.empty(0)  # in place of what is not asked for
SMALLEST = 1e-38  # clamps the argument of ln where p = 0, whose product p ln p is 0 all the same


@dataclass(frozen=True)
class Extras:
    """What is collected only on request."""

    received_head: bool = False
    gram: Float[Tensor, "head dim dim"] | None = None  # W_Oᵀ W_O of each head: asks for `norm`
    map_positions: tuple[int, ...] = ()
    map_heads: bool = False


@dataclass
class QuerySums:
    """What the statistics of one row of one call are made of. p is a softmax weight, p̄ its mean
    over heads. What queries can see is in `plan`.
    """

    keys: TypedKeys
    plan: QueryPlan
    extras: Extras
    mass: Float[Tensor, "head query type"]  # Σ p
    plogp: Float[Tensor, "head query type"]  # Σ p ln p, float64
    pooled: Float[Tensor, "query type"]  # Σ p̄, float64
    pooled_plogp: Float[Tensor, "query type"]  # Σ p̄ ln p̄, float64
    received: Float[Tensor, "type key"]  # Σ p̄ over the queries of a type
    # `NOTHING` unless requested:
    received_head: Float[Tensor, "..."]  # (type, head, key)
    norm: Float[Tensor, "..."]  # (head, query, type): ‖W_O Σ p v‖
    sink: Float[Tensor, "..."]  # (head, query): the weight of the learned sink, where there is one
    maps: Float[Tensor, "..."]  # (token, [head], key)
    map_count: Float[Tensor, "..."]  # 1 for the tokens of `maps` that are queries of this call

    @classmethod
    def empty(
        cls,
        plan: QueryPlan,
        head_count: int,
        keys: TypedKeys,
        extras: Extras,
        has_sink: bool = False,
    ) -> "QuerySums":
        """Zeros for the queries of the plan."""

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=keys.device)

        queries, types, width = len(plan), keys.type_count, len(keys)
        tokens = len(extras.map_positions)
        return cls(
            keys=keys,
            plan=plan,
            extras=extras,
            mass=zeros(head_count, queries, types),
            plogp=zeros(head_count, queries, types, dtype=torch.float64),
            pooled=zeros(queries, types, dtype=torch.float64),
            pooled_plogp=zeros(queries, types, dtype=torch.float64),
            received=zeros(types, width),
            received_head=zeros(types, head_count, width) if extras.received_head else NOTHING,
            norm=zeros(head_count, queries, types) if extras.gram is not None else NOTHING,
            sink=zeros(head_count, queries) if has_sink else NOTHING,
            maps=zeros(tokens, *([head_count] if extras.map_heads else []), width)
            if tokens
            else NOTHING,
            map_count=zeros(tokens) if tokens else NOTHING,
        )

    @property
    def nbytes(self) -> int:
        """What it holds for each query."""
        return self.mass.nbytes + self.plogp.nbytes + self.norm.nbytes + self.received.nbytes

    def fits(self, other: "QuerySums") -> bool:
        """Whether both can be summed over queries at once."""
        same_shapes = self.mass.shape == other.mass.shape and self.sink.shape == other.sink.shape
        return self.plan is other.plan and same_shapes

    def add_average(self, queries: slice, average: Float[Tensor, "query key"], start: int) -> None:
        """Adds what is computed from the weights averaged over heads: heat maps, and the sums of
        the pooled entropy. Overwrites `average`.

        queries: where these queries stand in the sums. start: position of the first key.
        """
        keys, span = self.keys, slice(start, start + average.shape[1])
        if not self.extras.map_heads:
            for token, query in self._map_queries(queries):
                self.maps[token, span] = average[query]
                self.map_count[token] = 1
        self.received[:, span] += self.plan.one_hot[queries].T @ average
        # With r = p̄ / max(p̄):  Σ p̄ ln p̄ = max(p̄) (Σ r ln r + ln max(p̄) Σ r). Relative to the
        # maximum the sums are exact where the weights are even (r = 1, r ln r = 0).
        # A sink can leave no weight to the keys.
        top = average.amax(-1, keepdim=True).clamp(min=SMALLEST)
        relative = average.div_(top)
        sum_r = keys.sum(relative, start).double()
        relative_log = relative.clamp(min=SMALLEST).log_()
        sum_r_log_r = keys.sum(relative.mul_(relative_log), start).double()
        top = top.double()
        self.pooled[queries] = top * sum_r
        self.pooled_plogp[queries] = top * (sum_r_log_r + top.log() * sum_r)

    def add_heads(
        self,
        heads: slice,
        queries: slice,
        weights: Float[Tensor, "head query key"],
        start: int,
    ) -> None:
        """Adds the heat maps and maps of single heads, where they are requested."""
        span = slice(start, start + weights.shape[-1])
        if self.extras.received_head:
            received = torch.einsum("qa,hqk->ahk", self.plan.one_hot[queries], weights)
            self.received_head[:, heads, span] += received
        if self.extras.map_heads:
            for token, query in self._map_queries(queries):
                self.maps[token, heads, span] = weights[:, query]
                self.map_count[token] = 1

    def _map_queries(self, queries: slice) -> list[tuple[int, int]]:
        """(token of `maps`, index among these queries) for the tokens that are among them."""
        if not self.extras.map_positions:
            return []
        positions = (self.plan.position[queries] + self.plan.first).tolist()
        index = {position: i for i, position in enumerate(positions)}
        wanted = enumerate(self.extras.map_positions)
        return [(token, index[position]) for token, position in wanted if position in index]


def contribution_norm(
    weights: Float[Tensor, "head query key"],
    value: Float[Tensor, "key_head key dim"],
    gram: Float[Tensor, "head dim dim"],
    keys: TypedKeys,
    start: int,
) -> Float[Tensor, "head query type"]:
    """‖W_O Σ_{j∈B} p_j v_j‖ of each type B. With x = Σ p v: ‖W_O x‖² = xᵀ (W_Oᵀ W_O) x, so that the
    vector of the model's width is never formed.
    """
    value = value.float().repeat_interleave(weights.shape[0] // value.shape[0], 0)
    norms = weights.new_zeros(*weights.shape[:2], keys.type_count)
    stop = start + weights.shape[-1]
    for key_type in sorted({kind for kind, _, _ in keys.runs(start, stop)}):
        mixed = (weights * keys.one_hot[start:stop, key_type]) @ value  # (head, query, dim)
        squared = torch.einsum("hqd,hde,hqe->hq", mixed, gram, mixed)
        norms[..., key_type] = squared.clamp(min=0).sqrt()
    return norms
