"""The attention statistic: how much each type of token gives to each type of token. All numbers of
a record's stacks are defined here.

a_ij is the softmax weight of query i on key j in one head, in float32. j is visible to i by
causality, padding and the model's own windows, never by an intervention: what an intervention hides
counts as a_ij = 0. A (of queries) and B (of keys) are token types.

    mass          Σ_{i∈A} Σ_{j∈B} a_ij / queries of A that can see a key of B
                  (Eq. 4 of the LLaVA-Mini paper, arXiv 2501.03895)
    share         the same over only those queries of A that can see a vision key: sums to 1 over B
    lift          mean over queries of (Σ_{j∈B} a_ij) ÷ (visible keys of B ÷ all visible keys)
    entropy       the pooled entropy: average a_ij over heads, normalise over B, -Σ p ln p in nats;
                  mean over queries that see at least 2 keys of B
    head_entropy  the same within each head, without averaging; queries whose weight on B is below
                  1e-30 are left out, and the others counted
    entropy_ratio, head_entropy_ratio
                  the same two, each query's entropy divided by ln(keys of B that it can see) before
                  queries are averaged: 1 is an even spread, also under causality
    received      mean of the head-averaged a_ij that a vision key gets from the queries of A that
                  can see it
    contribution  mean over queries of ‖W_O Σ_{j∈B} a_ij v_j‖, in each head
    learned_sink  mean over the queries of A of the weight that a learned sink takes, in each head;
                  only where the kernel has one (`hooks/score_rule.py`)

With a learned sink the weights of a query sum to 1 less its part. Nothing is normalised again: mass
and share are parts of the whole, and the sum of share over B is 1 less the sink. Scores are capped
and biased before the softmax where the model's kernel does so.

Three steps: `streaming.query_sums` sums over the keys of each type for every query (Σ p ln p
included); `type_sums.py` sums over the queries of each type, and divides by the counts. Sums and
counts are kept, so that those of calls, rows and tiles are added exactly.

    query_ids = np.where(types.is_query, types.ids, -1)
    statistic = AttentionStatistic(types.names, types.ids, query_ids, types.vision)
    with tap(stack.attention, statistic):
        model(**inputs)
    table = statistic.table("model.language_model.layers.0.self_attn", rows=[0])
    table["mass"]                                               # (head, query_type, key_type)
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights, known_rule
from probe.hooks.offload import stored_parameter
from probe.measures.attention.query_plan import QueryPlans
from probe.measures.attention.query_sums import Extras, QuerySums
from probe.measures.attention.streaming import query_sums, weight_sums
from probe.measures.attention.type_sums import means, merge, type_sums
from probe.measures.attention.typed_keys import TypedKeys

WAITING_BYTES = 2**21  # of sums over keys that wait to be summed over queries


class Waiting(NamedTuple):
    """The sums of a call over keys, for each query still."""

    module: str
    sums: QuerySums


class AttentionStatistic:
    """A streaming accumulator: takes attention calls, yields the table above.

    Args:
        names: the types.
        ids: the type of every key, an index into `names`, -1 for padding.
        query_ids: the type that each position counts as when it is a query, -1: not counted. As
            long as `ids`; longer for cross-attention of more queries than keys (see `TypedKeys`).
        vision: which positions are vision keys, whatever their type is called.
        order: the row of each element of the model's batch, in the order of calls; by default their
            own. Elements that share a row are pooled: the frames of a video.
        received_head: also keep what each vision key receives in each head.
        map_positions: the query positions of each row whose attention is kept (`maps`).
        map_heads: keep it for each head.
        contribution: gives the output projection (a Linear) of a module: also keep `contribution`.

    A module that is called several times with fewer batch elements than rows (once an image) is
    assumed to go through the rows in order, to the next when the keys have reached their end. Calls
    with fewer queries than keys continue the sequence, as steps of cached decoding do: their
    queries are the last positions.
    """

    def __init__(
        self,
        names: Sequence[str],
        ids: Int[np.ndarray, "row key"],
        query_ids: Int[np.ndarray, "row position"],
        vision: Bool[np.ndarray, "row key"],
        *,
        order: Sequence[int] | None = None,
        received_head: bool = False,
        map_positions: Sequence[Sequence[int]] = (),
        map_heads: bool = False,
        contribution: Callable[[nn.Module], nn.Linear] | None = None,
    ):
        self.names, self.ids, self.query_ids, self.vision = tuple(names), ids, query_ids, vision
        self.order = list(range(len(ids)) if order is None else order)
        self.received_head, self.map_heads = received_head, map_heads
        self.map_positions, self.contribution = map_positions, contribution
        self._keys: dict[tuple[int, torch.device], TypedKeys] = {}
        self._plans = QueryPlans()
        self._extras: dict[int, Extras] = {}
        # Of each row: calls of neighbouring layers under one plan, which are summed together.
        self._waiting: dict[int, list[Waiting]] = defaultdict(list)
        # For each module and row; on the device until they are read.
        self._unread = False  # whether any are
        self._taken: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        # For each module: batch elements that are complete, and keys of those that are not.
        self._complete: dict[str, int] = defaultdict(int)
        self._keys_so_far: dict[str, int] = {}

    def __call__(self, call: AttentionCall | AttentionWeights) -> None:
        """Takes one call: what a `tap` observes. Raises ProbeError for one with more keys than
        its row, and for a kernel that treats scores in an unknown way.
        """
        if isinstance(call, AttentionCall):
            known_rule("measure", call)
        first, rows = self.place(call)
        for element, row in enumerate(rows):
            sums = self._query_sums(call, element, row, first)
            waiting = self._waiting[row]
            if waiting and not waiting[0].sums.fits(sums):
                self._take(row)
            self._waiting[row].append(Waiting(call.name, sums))
            if len(self._waiting[row]) * sums.nbytes > WAITING_BYTES:
                self._take(row)

    def _take(self, row: int) -> None:
        """Sums the waiting calls of a row over the queries of each type."""
        waiting, self._waiting[row] = self._waiting[row], []
        if not waiting:
            return
        self._unread = True
        totals = type_sums([each.sums for each in waiting])
        for each, sums in zip(waiting, totals, strict=True):
            sums_of_module = self._taken[each.module]
            if row not in sums_of_module:
                sums_of_module[row] = sums
                continue
            if isinstance(sums_of_module[row]["mass"], np.ndarray):  # it was read already
                sums = {name: value.cpu().numpy() for name, value in sums.items()}
            merge(sums_of_module[row], sums)

    @property
    def _sums(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Sums and counts by module and row, with those of all calls so far."""
        for row in self._waiting:
            self._take(row)
        return self._taken

    def parts(
        self, call: AttentionCall | AttentionWeights, weights: Tensor | None = None
    ) -> Iterator[tuple[AttentionCall | AttentionWeights, Tensor | None]]:
        """The calls that a call counts as, each with its part of the weights: one, itself."""
        yield call, weights

    def place(self, call: AttentionCall | AttentionWeights) -> tuple[int, list[int]]:
        """The position of the call's first key (above 0 where a sliding window has dropped earlier
        ones), and the row of each of its batch elements.

        Stateful: pass every attention call exactly once, in execution order.
        """
        continues = call.key_count > call.query_count and call.name in self._keys_so_far
        end = call.key_count
        if continues:
            end = self._keys_so_far[call.name] + call.query_count
        width = self.ids.shape[1]
        if end > width:
            raise ProbeError(
                "probe",
                expected=f"attention over the {width} tokens that were encoded",
                got=f"{end} keys in {call.name}",
                fix="leave its stack out",
            )
        start = self._complete[call.name]
        # an edited call may run in parts, each of some of its queries
        is_part = getattr(call, "active_queries", None) is not None
        if start + call.row_count > len(self.order) and not is_part:
            raise ProbeError(
                "probe",
                expected="a layer that runs once in a forward",
                got=f"another pass through the layer of {call.name}",
                fix="leave its stack out",
            )
        if end == width:
            self._complete[call.name] += call.row_count
            self._keys_so_far.pop(call.name, None)
        else:
            self._keys_so_far[call.name] = end
        elements = range(start, start + call.row_count)
        return end - call.key_count, [self.order[i % len(self.order)] for i in elements]

    def width(self, row: int) -> int:
        """The keys of a row."""
        return self.ids.shape[1]

    def _query_sums(
        self, call: AttentionCall | AttentionWeights, element: int, row: int, first: int
    ) -> QuerySums:
        extras = self._extras_of(row)
        if isinstance(call, AttentionWeights):
            keys = self._keys_of(row, call.weights.device)
            plan = self._plans.of(call, row, element, keys, 0)
            return weight_sums(call, element, keys, plan, extras)
        keys = self._keys_of(row, call.query.device)
        plan = self._plans.of(call, row, element, keys, first)
        if self.contribution is not None:
            projection = self.contribution(call.module)
            square = gram(projection, call.query.shape[1], call.query.device)
            extras = replace(extras, gram=square)
        return query_sums(call, element, keys, extras, plan=plan)

    def _extras_of(self, row: int) -> Extras:
        if row not in self._extras:
            positions = tuple(self.map_positions[row]) if len(self.map_positions) else ()
            self._extras[row] = Extras(self.received_head, None, positions, self.map_heads)
        return self._extras[row]

    def _keys_of(self, row: int, device: torch.device) -> TypedKeys:
        if (row, device) not in self._keys:
            types = len(self.names), self.query_ids[row], self.vision[row]
            self._keys[row, device] = TypedKeys(self.ids[row], *types, device)
        return self._keys[row, device]

    def _read(self) -> None:
        """Moves all sums to the host, those of all modules and rows in one transfer."""
        if not self._unread and not any(self._waiting.values()):
            return
        every_sums = [sums for rows in self._sums.values() for sums in rows.values()]
        held = [
            (sums, name, value)
            for sums in every_sums
            for name, value in sums.items()
            if isinstance(value, Tensor)
        ]
        on_device = [value for _, _, value in held if value.device.type != "cpu"]
        if on_device:
            moved = torch.cat([value.double().flatten() for value in on_device]).cpu()
            parts = iter(moved.split([value.numel() for value in on_device]))
        for sums, name, value in held:
            moved_value = value if value.device.type == "cpu" else next(parts).view(value.shape)
            sums[name] = moved_value.numpy()
        self._unread = False

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules whose calls were observed, in order."""
        return tuple(self._sums)

    def sums(self, name: str) -> list[dict[str, np.ndarray]]:
        """Sums and counts of one module, one entry a row."""
        self._read()
        return [self._sums[name][row] for row in sorted(self._sums[name])]

    def table(self, name: str, rows: Sequence[int] = (0,)) -> dict[str, np.ndarray]:
        """The table of one module over these rows together: the keys of heat maps and maps
        concatenated, everything else pooled.
        """
        self._read()
        first, *others = (self._sums[name][row] for row in rows)
        total = dict(first)
        for sums in others:
            merge(total, sums, concatenate_keys=True)
        return means(total)


def gram(projection: nn.Linear, heads: int, device: torch.device) -> Float[Tensor, "head dim dim"]:
    """W_Oᵀ W_O of each head, in float32, on this device: ‖W_O x‖² = xᵀ (W_Oᵀ W_O) x."""
    if projection.in_features % heads:
        raise ProbeError(
            "contribution",
            expected=f"an output projection of {heads} heads",
            got=f"{projection.in_features} inputs",
        )
    weight = stored_parameter(projection, "weight").to(device).float()  # (hidden, head × dim)
    of_heads = weight.view(weight.shape[0], heads, -1).transpose(0, 1)  # (head, hidden, dim)
    return of_heads.transpose(1, 2) @ of_heads
