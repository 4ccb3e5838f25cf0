"""Sums over the keys of each type, for every query of one row of an attention call.

`streaming.py` fills them from query, key and value, block by block, or from whole weights;
`statistic.py` makes the numbers of a record from them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.measures.attention.typed_keys import TypedKeys

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
    over heads.
    """

    keys: TypedKeys
    extras: Extras
    position: Int[Tensor, "query"]  # index of the query among the keys
    visible: Float[Tensor, "query type"]  # keys that the model lets the query see
    vision_visible: Float[Tensor, "query"]  # the vision keys among them
    mass: Float[Tensor, "head query type"]  # Σ p
    plogp: Float[Tensor, "head query type"]  # Σ p ln p, float64
    pooled: Float[Tensor, "query type"]  # Σ p̄, float64
    pooled_plogp: Float[Tensor, "query type"]  # Σ p̄ ln p̄, float64
    received: Float[Tensor, "type key"]  # Σ p̄ over the queries of a type
    received_count: Float[Tensor, "type key"]  # the queries of the type that can see the key
    # Empty unless requested:
    received_head: Float[Tensor, "_type head key"]
    norm: Float[Tensor, "_head query type"]  # ‖W_O Σ p v‖
    maps: Float[Tensor, "token *head key"]
    map_count: Float[Tensor, "token"]  # 1 for the tokens of `maps` that are queries of this call

    @classmethod
    def empty(
        cls, position: Int[Tensor, "query"], head_count: int, keys: TypedKeys, extras: Extras
    ) -> "QuerySums":
        """Zeros for the queries at `position`."""

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=position.device)

        queries, types, width = len(position), keys.type_count, len(keys.ids)
        tokens = len(extras.map_positions)
        return cls(
            keys=keys,
            extras=extras,
            position=position,
            visible=zeros(queries, types),
            vision_visible=zeros(queries),
            mass=zeros(head_count, queries, types),
            plogp=zeros(head_count, queries, types, dtype=torch.float64),
            pooled=zeros(queries, types, dtype=torch.float64),
            pooled_plogp=zeros(queries, types, dtype=torch.float64),
            received=zeros(types, width),
            received_count=zeros(types, width),
            received_head=zeros(types if extras.received_head else 0, head_count, width),
            norm=zeros(head_count if extras.gram is not None else 0, queries, types),
            maps=zeros(tokens, *([head_count] if extras.map_heads else []), width),
            map_count=zeros(tokens),
        )

    def add_average(
        self,
        queries: slice,
        average: Float[Tensor, "query key"],
        visible: Bool[Tensor, "query key"],
        start: int,
    ) -> None:
        """Adds what is computed from the weights averaged over heads: counts, heat maps, and the
        sums of the pooled entropy. Overwrites `average`.

        queries: where these queries stand in the sums. start: position of the first key.
        """
        keys, span = self.keys, slice(start, start + average.shape[1])
        self.visible[queries] = keys.sum(visible.float(), start)
        self.vision_visible[queries] = visible.float() @ keys.is_vision[span]
        if not self.extras.map_heads:
            for token, query in self._map_queries(queries):
                self.maps[token, span] = average[query]
                self.map_count[token] = 1
        query_type = keys.query_one_hot(self.position[queries]).T  # (type, query)
        self.received[:, span] += query_type @ average
        self.received_count[:, span] += query_type @ visible.float()
        # With r = p̄ / max(p̄):  Σ p̄ ln p̄ = max(p̄) (Σ r ln r + ln max(p̄) Σ r). Relative to the
        # maximum the sums are exact where the weights are even (r = 1, r ln r = 0).
        top = average.amax(-1, keepdim=True)
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
            query_type = self.keys.query_one_hot(self.position[queries])
            received = torch.einsum("qa,hqk->ahk", query_type, weights)
            self.received_head[:, heads, span] += received
        if self.extras.map_heads:
            for token, query in self._map_queries(queries):
                self.maps[token, heads, span] = weights[:, query]
                self.map_count[token] = 1

    def _map_queries(self, queries: slice) -> list[tuple[int, int]]:
        """(token of `maps`, index among these queries) for the tokens that are among them."""
        if not self.extras.map_positions:
            return []
        index = {position: i for i, position in enumerate(self.position[queries].tolist())}
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
    for key_type in range(keys.type_count):
        is_type = keys.one_hot[start : start + weights.shape[-1], key_type]
        if is_type.any():
            mixed = (weights * is_type) @ value  # (head, query, dim)
            squared = torch.einsum("hqd,hde,hqe->hq", mixed, gram, mixed)
            norms[..., key_type] = squared.clamp(min=0).sqrt()
    return norms
