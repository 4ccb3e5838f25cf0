"""The statistic: what each kind of token gives to each kind of token, in numbers whose definitions
are here.

a_ij is the softmax weight of query i on key j in one head, in float32. j is visible to i by
causality, padding and the model's own windows, never by an intervention: what an intervention hides
counts as a_ij = 0. A and B are token types.

    mass          Σ_{i∈A} Σ_{j∈B} a_ij / queries of A that can see a key of B         (LLaVA-Mini paper, Eq. 4)
    share         the same, over only those queries of A that can see a vision key: sums to 1 over B
    lift          mean over queries of (a_i on B) ÷ (visible keys of B ÷ all visible keys)
    entropy       heads averaged first, normalised over B, -Σ p ln p, mean over queries that see 2 keys of B or more
    head_entropy  the same in each head; queries whose weight on B is below 1e-30 are left out, and counted
    received      mean of the head-averaged a_ij that a vision key gets from the queries of A that can see it
    contribution  mean over queries of ‖W_O Σ_{j∈B} a_ij v_j‖, of each head

Sums and counts are kept, and divided at the end: `merge` adds those of calls, rows and tiles
exactly.

    statistic = Statistic(types.names, types.ids, np.where(types.is_query, types.ids, -1), types.vision)
    with tap(stack.attention, statistic):
        model(**inputs)
    statistic.table("model.language_model.layers.0.self_attn", rows=[0])["mass"]     # (head, query_type, key_type)
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.measures.attention.streaming import Extras, Keys, QuerySums, query_sums, weight_sums

NOTHING = 1e-30  # below this share of a type, how it spreads within the type is rounding


def type_sums(sums: QuerySums, keys: Keys) -> dict[str, Tensor]:
    """Sums over the queries of each type, and the counts that divide them."""
    asking = keys.of_queries(sums.position).double()
    vision = keys.vision
    mass, visible, pooled = sums.mass.double(), sums.visible.double(), sums.pooled
    sees = (visible > 0).double()
    total = visible.sum(-1, keepdim=True)
    even = torch.where(
        visible > 0, total / visible.clamp(min=1), 0.0
    )  # 1 ÷ the type's part of all visible keys

    def per_type(
        x: Float[Tensor, "*head query type"],
    ) -> Float[Tensor, "*head query_type key_type"]:
        return torch.einsum("qa,...qb->...ab", asking, x)

    def spread(part: Tensor, plogp: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy within each type, summed over the queries that have one, and their number."""
        has = (visible >= 2) & (part > NOTHING)
        entropy = part.clamp(min=NOTHING).log() - plogp / part.clamp(min=NOTHING)
        return per_type(torch.where(has, entropy.clamp(min=0), 0.0)), per_type(has.double())

    image = (
        asking * (sums.vision_visible > 0)[:, None]
    )  # only the queries that can see a vision key
    entropy, entropy_count = spread(pooled, sums.pooled_plogp)
    head_entropy, head_entropy_count = spread(mass, sums.plogp)
    out = {
        "mass": per_type(mass),
        "query_count": per_type(sees),
        "share": torch.einsum("qa,hqb->hab", image, mass),
        "share_count": image.sum(0),
        "lift": per_type(mass * even),
        "entropy": entropy,
        "entropy_count": entropy_count,
        "head_entropy": head_entropy,
        "head_entropy_count": head_entropy_count,
        "received_count": sums.received_count[..., vision],
    }
    for name in ("received", "received_head", "maps"):
        if getattr(sums, name).numel():
            out[name] = getattr(sums, name)[..., vision].double()
    if (
        "maps" in out
    ):  # with an axis of keys, so that those of several images can stand side by side
        count = sums.map_count.double()
        out["map_count"] = count.view(-1, *[1] * (out["maps"].ndim - 1)).expand_as(out["maps"])
    if sums.norm.numel():
        out["contribution"] = per_type(sums.norm.double() * sees)
    return out


def means(total: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Divides sums by their counts. A count of 0 gives NaN: there is nothing to average."""

    def divide(x: np.ndarray, count: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(count > 0, x / count, np.nan).astype(np.float32)

    queries = total["query_count"]
    out = {
        "mass": divide(total["mass"], queries),
        "share": divide(total["share"], total["share_count"][:, None]),
        "lift": divide(total["lift"], queries),
        "entropy": divide(total["entropy"], total["entropy_count"]),
        "head_entropy": divide(total["head_entropy"], total["head_entropy_count"]),
        "received": divide(total["received"], total["received_count"]),
    }
    for name in ("query_count", "share_count", "entropy_count", "head_entropy_count"):
        out[name] = total[name].astype(np.float32)
    if "contribution" in total:
        out["contribution"] = divide(total["contribution"], queries)
    if "received_head" in total:
        counts = total["received_count"][:, None]
        out["received_head"] = divide(total["received_head"], counts).swapaxes(
            0, 1
        )  # (head, query_type, key)
    if "maps" in total:
        maps = divide(total["maps"], total["map_count"])
        out["maps"] = maps if maps.ndim == 2 else maps.swapaxes(0, 1)  # ([head], token, key)
    return out


class AttentionStatistic:
    """A streaming accumulator: takes attention calls, yields the table above.

    Args:
        names: the types.
        ids: the type of every key, an index into `names`, -1 for padding.
        query_ids: the type under which each position is counted as a query, -1: not at all. As long as `ids`; longer
            for cross-attention of more queries than keys (see `streaming.Keys`).
        vision: which positions are vision keys, whatever their type is called.
        order: the row of each row of the model's batch, in the order in which calls go through them; by default their
            own. What shares a row is pooled: the frames of a video.
        received_head, map_positions, map_heads, contribution: what is kept only on request; `map_positions` are the
            query positions of each row; `contribution` gives a module's output projection, a Linear.

    A module that is called several times with fewer rows than there are (once an image) is taken to
    go through them in order, to the next when the keys have reached their end. Calls with fewer
    queries than keys go on behind those before them, as steps of cached decoding do: the queries
    are the last positions.
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
        self.order = list(range(len(ids))) if order is None else list(order)
        self.received_head, self.map_positions, self.map_heads = (
            received_head,
            map_positions,
            map_heads,
        )
        self.contribution = contribution
        self._keys: dict[tuple[int, torch.device], Keys] = {}
        self._sums: dict[str, dict[int, dict[str, np.ndarray]]] = defaultdict(dict)
        self._next: dict[str, int] = defaultdict(int)
        self._past: dict[
            str, int
        ] = {}  # keys that earlier calls of a module had, of the rows it is at

    def __call__(self, call: AttentionCall | AttentionWeights) -> None:
        """Takes one call: what a `tap` hands over. Raises ProbeError for one with more keys than
        its row.
        """
        first, indices = self.place(call)
        for row, index in enumerate(indices):
            sums = self._row(call, row, index, first)
            known = self._sums[call.name].setdefault(index, sums)
            if known is not sums:
                merge(known, sums)

    def place(self, call: AttentionCall | AttentionWeights) -> tuple[int, list[int]]:
        """The position of the call's first key (above 0 where a sliding window has forgotten the
        ones before it), and the row of each of its own. Moves on, so calls have to be shown once
        and in order.
        """
        step = call.key_count > call.query_count and call.name in self._past
        end = self._past[call.name] + call.query_count if step else call.key_count
        width = self.ids.shape[1]
        if end > width:
            raise ProbeError(
                "probe",
                expected=f"attention over the {width} tokens that were encoded",
                got=f"{end} keys in {call.name}",
                fix="leave its stack out",
            )
        start = self._next[call.name]
        if end == width:  # nothing more comes behind these rows
            self._next[call.name] = start + call.row_count
            self._past.pop(call.name, None)
        else:
            self._past[call.name] = end
        return end - call.key_count, [
            self.order[(start + row) % len(self.order)] for row in range(call.row_count)
        ]

    def _row(
        self, call: AttentionCall | AttentionWeights, row: int, index: int, first: int
    ) -> dict[str, np.ndarray]:
        positions = tuple(self.map_positions[index]) if len(self.map_positions) else ()
        extras = Extras(self.received_head, None, positions, self.map_heads)
        if isinstance(call, AttentionWeights):
            keys = self._keys_of(index, call.weights.device)
            sums = weight_sums(call, row, keys, extras)
        else:
            keys = self._keys_of(index, call.query.device)
            if self.contribution is not None:
                extras = replace(
                    extras, gram=gram(self.contribution(call.module), call.query.shape[1])
                )
            sums = query_sums(call, row, keys, extras, first=first)
        return {name: value.cpu().numpy() for name, value in type_sums(sums, keys).items()}

    def _keys_of(self, index: int, device: torch.device) -> Keys:
        if (index, device) not in self._keys:
            rows = (self.ids[index], self.query_ids[index], self.vision[index].nonzero()[0])
            ids, query_ids, vision = (
                torch.as_tensor(x, dtype=torch.long, device=device) for x in rows
            )
            self._keys[index, device] = Keys(ids, len(self.names), query_ids, vision)
        return self._keys[index, device]

    def sums(self, name: str) -> list[dict[str, np.ndarray]]:
        """Sums and counts of one module, one entry a row."""
        return [self._sums[name][row] for row in sorted(self._sums[name])]

    def table(self, name: str, rows: Sequence[int] = (0,)) -> dict[str, np.ndarray]:
        """The table of one module over these rows taken together: heat maps side by side,
        everything else pooled.
        """
        total: dict[str, np.ndarray] = {}
        for row in rows:
            sums = self._sums[name][row]
            total = merge(total, sums, join=True) if total else dict(sums)
        return means(total)


KEYED = ("received", "received_count", "received_head", "maps", "map_count")  # have an axis of keys


def merge(
    total: dict[str, np.ndarray], more: dict[str, np.ndarray], *, join: bool = False
) -> dict[str, np.ndarray]:
    """Adds sums and counts in place, exactly. `join` puts the keys of different images side by
    side.
    """
    for name, value in more.items():
        total[name] = (
            np.concatenate([total[name], value], -1)
            if join and name in KEYED
            else total[name] + value
        )
    return total


def gram(projection: nn.Linear, heads: int) -> Float[Tensor, "head dim dim"]:
    """W_Oᵀ W_O of each head, in float32: ‖W_O x‖² = xᵀ (W_Oᵀ W_O) x."""
    if projection.in_features % heads:
        raise ProbeError(
            "contribution",
            expected=f"an output projection of {heads} heads",
            got=f"{projection.in_features} inputs",
        )
    weight = projection.weight.detach().float()  # (hidden, head × dim)
    parts = weight.view(weight.shape[0], heads, -1).transpose(0, 1)
    return parts.transpose(1, 2) @ parts
