"""Which queries of an attention call are counted, and what they can see: the same in all layers
that make the same kind of call, so it is planned once.

    plan = query_plan(call, row=0, keys=keys, first=0)
    plan.visible                     # (query, type): keys that the model lets a query see

Everything that shapes depend on is known on the host, so that no device is waited for.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.hooks.attention_call import AttentionCall, AttentionWeights, visible_keys
from probe.measures.attention.typed_keys import TypedKeys

BLOCK_QUERIES = 128  # whose visible keys are held at once


@dataclass(frozen=True)
class TypeWeights:
    """What sums over the queries of a type take from a plan, in float64: nothing that depends on a
    layer. `counts`: sums over queries that are the same in all layers under the plan.
    """

    of_query: Float[Tensor, "query types_twice"]  # 1 for its type; the same if it sees vision
    can_see: Float[Tensor, "query type"]
    several_visible: Bool[Tensor, "query type"]
    inverse_even: Float[Tensor, "query type"]  # 1 ÷ (visible keys of the type ÷ all visible keys)
    highest_entropy: Float[Tensor, "query type"]
    counts: dict[str, Tensor]


@dataclass(frozen=True)
class QueryPlan:
    """The counted queries of one row of a call. Its keys begin at `first` in `TypedKeys`."""

    query: Int[np.ndarray, "query"]  # which queries of the call
    position: Int[np.ndarray, "query"]  # index among the call's keys
    query_type: Int[np.ndarray, "query"]
    first: int
    begin: Int[np.ndarray, "query"]  # the keys from begin to end are visible, or the mask decides
    end: Int[np.ndarray, "query"]
    # On the device:
    one_hot: Float[Tensor, "query type"]  # of the query's type; 0 where its output is not used
    visible: Float[Tensor, "query type"]  # keys that the model lets the query see
    vision_visible: Float[Tensor, "query"]  # the vision keys among them
    received_count: Float[Tensor, "type vision_key"]  # the queries of a type that can see a key
    without_sums: dict[str, Tensor]  # counts of queries that give no attention; {}: none

    def __len__(self) -> int:
        return len(self.query)

    @cached_property
    def indices(self) -> dict[str, Int[Tensor, "query"]]:
        """`query`, `position`, `begin` and `end` on the device, to which they are copied once."""
        arrays = {"query": self.query, "position": self.position}
        arrays |= {"begin": self.begin, "end": self.end}
        device = self.one_hot.device
        return {name: torch.as_tensor(array, device=device) for name, array in arrays.items()}

    @cached_property
    def type_weights(self) -> TypeWeights:
        visible, query_type = self.visible.double(), self.one_hot.double()
        can_see = (visible > 0).double()
        sees_vision = query_type * (self.vision_visible > 0)[:, None]
        counts = {
            "query_count": query_type.T @ can_see,
            "share_count": sees_vision.sum(0),
            "received_count": self.received_count,
        }
        for name, count in self.without_sums.items():
            counts[name] = counts.get(name, 0) + count
        return TypeWeights(
            of_query=torch.cat([query_type, sees_vision], -1),
            can_see=can_see,
            several_visible=visible >= 2,
            inverse_even=can_see * visible.sum(-1, keepdim=True) / visible.clamp(min=1),
            highest_entropy=visible.clamp(min=2).log(),
            counts=counts,
        )


def query_plan(
    call: AttentionCall | AttentionWeights, row: int, keys: TypedKeys, first: int = 0
) -> QueryPlan:
    """The plan of one row of a call, whose first key is at position `first` of `keys`."""
    offset = call.key_count - call.query_count  # index of the first query among the keys
    query = np.arange(call.query_count)
    counted = keys.query_types(query + offset + first) >= 0
    active = getattr(call, "active_queries", None)
    on_host = active is None or active.device.type == "cpu"
    if active is not None and on_host:
        counted = counted & active[row].numpy()
    query = query[counted]
    position = query + offset
    query_type = keys.query_types(position + first)
    is_type = query_type[:, None] == np.arange(keys.type_count)
    one_hot = torch.as_tensor(is_type.astype(np.float32), device=keys.device)
    if active is not None and not on_host:  # counted as 0: to leave them out would wait for it
        one_hot = one_hot * active[row, torch.as_tensor(query, device=keys.device)][:, None]
    begin, end = _visible_range(call, keys, position, first)
    if on_host and getattr(call, "model_mask", None) is None:
        counts = _counts_of_ranges(keys, begin, end, first, is_type)
        visible, vision_visible, received_count = (
            torch.as_tensor(count.astype(np.float32), device=keys.device) for count in counts
        )
    else:
        assert isinstance(call, AttentionCall)
        visible, vision_visible, received_count = _counts_of_mask(
            call, row, keys, position, first, one_hot
        )
    if getattr(call, "effective_mask", None) is not None:
        begin = np.full_like(begin, _first_key(call, keys, first))
        end = np.full_like(end, call.key_count)
    indices = (query, position, query_type, begin, end)
    query, position, query_type, begin, end = (
        np.ascontiguousarray(array, np.int64)
        for array in indices  # as compiled code reads them
    )
    return QueryPlan(
        query,
        position,
        query_type,
        first,
        begin,
        end,
        one_hot,
        visible,
        vision_visible,
        received_count[:, keys.vision],
        _counts_without_sums(call, row, keys, first),
    )


def _counts_without_sums(
    call: AttentionCall | AttentionWeights, row: int, keys: TypedKeys, first: int
) -> dict[str, Tensor]:
    """Of queries that give no attention, by the model's own mask: how many see a key of each type,
    how many a vision key, and how many each one. Those that an intervention silences are counted
    with the others; those that the layer runs without under names of their own.
    """
    counts = {}
    for prefix, name in (("", "silent_queries"), ("removed_", "removed_queries")):
        chosen = getattr(call, name, None)
        if chosen is None:
            continue
        assert isinstance(call, AttentionCall)
        position = np.arange(call.key_count - call.query_count, call.key_count)
        query_type = keys.query_types(position + first)
        is_type = query_type[:, None] == np.arange(keys.type_count)
        one_hot = torch.as_tensor(is_type, device=keys.device)
        one_hot = (one_hot & chosen[row].to(keys.device)[:, None]).float()
        seen = _counts_of_mask(call, row, keys, position, first, one_hot)
        visible, vision_visible, received_count = seen
        counts[f"{prefix}query_count"] = one_hot.double().T @ (visible > 0).double()
        counts[f"{prefix}share_count"] = (vision_visible > 0).double() @ one_hot.double()
        if not prefix:
            counts["received_count"] = received_count[:, keys.vision]
    return counts


def _first_key(call: AttentionCall | AttentionWeights, keys: TypedKeys, first: int) -> int:
    """The index of the call's first key that is not padding."""
    return int((keys.ids[first : first + call.key_count] >= 0).argmax())


def _visible_range(
    call: AttentionCall | AttentionWeights,
    keys: TypedKeys,
    position: Int[np.ndarray, "query"],
    first: int,
) -> tuple[Int[np.ndarray, "query"], Int[np.ndarray, "query"]]:
    """The first key that each query sees without a mask, and the one after the last."""
    is_call = isinstance(call, AttentionCall)
    causal = call.causal if is_call else bool(getattr(call.module, "is_causal", False))
    window = call.window if is_call else None
    begin = np.full(len(position), _first_key(call, keys, first))
    end = position + 1 if causal else np.full(len(position), call.key_count)
    if window is not None:
        begin = np.maximum(begin, position - window + 1)
    return np.minimum(begin, end - 1), end


def _counts_of_ranges(
    keys: TypedKeys,
    begin: Int[np.ndarray, "query"],
    end: Int[np.ndarray, "query"],
    first: int,
    is_type: Bool[np.ndarray, "query type"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`visible`, `vision_visible` and `received_count` where each query sees a range of keys."""
    key_types = keys.ids[:, None] == np.arange(keys.type_count)
    before = np.zeros((len(keys) + 1, keys.type_count), int)  # keys of each type before a position
    np.cumsum(key_types, 0, out=before[1:])
    visible = before[first + end] - before[first + begin]
    vision_before = np.searchsorted(keys.vision_keys, np.arange(len(keys) + 1))
    vision_visible = vision_before[first + end] - vision_before[first + begin]
    change = np.zeros((len(keys) + 1, keys.type_count), int)
    np.add.at(change, first + begin, is_type)
    np.subtract.at(change, first + end, is_type)
    return visible, vision_visible, np.cumsum(change, 0)[:-1].T


def _counts_of_mask(
    call: AttentionCall,
    row: int,
    keys: TypedKeys,
    position: Int[np.ndarray, "query"],
    first: int,
    one_hot: Float[Tensor, "query type"],
) -> tuple[Tensor, Tensor, Tensor]:
    """The same where a mask says what each query sees."""
    visible = torch.zeros(len(position), keys.type_count, device=keys.device)
    vision_visible = torch.zeros(len(position), device=keys.device)
    received_count = torch.zeros(keys.type_count, len(keys), device=keys.device)
    span = slice(first, first + call.key_count)
    for start in range(0, len(position), BLOCK_QUERIES):
        block = slice(start, start + BLOCK_QUERIES)
        at = torch.as_tensor(position[block], device=keys.device)
        sees = visible_keys(call.model_mask, call, row, at, call.key_count).float()
        visible[block] = keys.sum(sees, first)
        vision_visible[block] = sees @ keys.is_vision[span]
        received_count[:, span] += one_hot[block].T @ sees
    return visible, vision_visible, received_count


class QueryPlans:
    """The plans of a statistic: one for each kind of call, as long as calls of its kind repeat."""

    def __init__(self):
        self._plans: dict[tuple, tuple[tuple, QueryPlan]] = {}

    def of(
        self,
        call: AttentionCall | AttentionWeights,
        row: int,
        element: int,
        keys: TypedKeys,
        first: int,
    ) -> QueryPlan:
        """The plan of a batch element of a call that belongs to a row of the statistic. That of an
        earlier layer where it made the same call under the same mask.
        """
        window, causal = getattr(call, "window", None), getattr(call, "causal", None)
        masks = (
            getattr(call, "model_mask", None),
            getattr(call, "effective_mask", None),
            getattr(call, "active_queries", None),
            getattr(call, "removed_queries", None),
            getattr(call, "silent_queries", None),
            getattr(call.module, "is_causal", None),
        )
        kind = (row, element, window, causal)
        shape = (first, call.query_count, call.key_count, keys.device)
        known = self._plans.get(kind)
        if known is not None:
            (known_shape, known_masks), plan = known
            same_masks = all(a is b for a, b in zip(known_masks, masks, strict=True))
            if known_shape == shape and same_masks:
                return plan
        plan = query_plan(call, element, keys, first)
        self._plans[kind] = (shape, masks), plan
        return plan
