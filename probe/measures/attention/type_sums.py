"""From sums of each query to means over the queries of a type: the second and third step of
`statistic.py`, which defines the numbers.

    totals, = type_sums([sums])           # sums over the queries of each type, and counts
    merge(totals, *type_sums([other]))    # of another call, row or tile
    table = means(totals)                       # table["mass"]: (head, query_type, key_type)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.measures.attention.query_sums import NOTHING as NOT_ASKED
from probe.measures.attention.query_sums import QuerySums

NOTHING = 1e-30  # weights on a type below this are rounding, and so is their entropy
COUNT_OF = {
    "mass": "query_count",
    "lift": "query_count",
    "entropy": "entropy_count",
    "head_entropy": "head_entropy_count",
    "entropy_ratio": "entropy_count",
    "head_entropy_ratio": "head_entropy_count",
    "received": "received_count",
}
SINK = "learned_sink"  # only where a call has one
# Counts of queries that a layer ran without, by the name of the count that they belong to.
REMOVED = {name: f"removed_{name}" for name in ("query_count", "share_count")}
# Variables of a table with an axis of keys, on which different images are concatenated.
PER_KEY = ("received", "received_count", "received_head", "maps", "map_count")


def type_sums(of_calls: Sequence[QuerySums]) -> list[dict[str, Tensor]]:
    """Sums over the queries of each type, and the counts that they are divided by, of each call.
    The calls are those of several layers under one plan: all are summed by the same few operations.
    """
    keys, plan = of_calls[0].keys, of_calls[0].plan
    weights = plan.type_weights
    calls, heads = len(of_calls), len(of_calls[0].mass)

    def entropies(name: str, weight: Tensor, plogp: Tensor) -> dict[str, Tensor]:
        """Entropy of each query within each type, its ratio to the highest possible, ln(visible
        keys), and 1 for the queries that have one.

        With w = Σ_B p, the entropy of p / w is ln w - (Σ_B p ln p) / w.
        """
        is_defined = weights.several_visible & (weight > NOTHING)
        weight = weight.clamp(min=NOTHING)
        entropy = (weight.log() - plogp / weight).clamp(min=0) * is_defined
        ratio = entropy / weights.highest_entropy
        return {name: entropy, f"{name}_ratio": ratio, f"{name}_count": is_defined.double()}

    mass = _joined([sums.mass for sums in of_calls]).double()  # (call × head, query, type)
    plogp = _joined([sums.plogp for sums in of_calls])
    pooled = torch.stack([sums.pooled for sums in of_calls])
    pooled_plogp = torch.stack([sums.pooled_plogp for sums in of_calls])
    by_head = {
        "mass": mass,
        "lift": mass * weights.inverse_even,
        **entropies("head_entropy", mass, plogp),
    }
    if of_calls[0].norm is not NOT_ASKED:
        norm = _joined([sums.norm for sums in of_calls])
        by_head["contribution"] = norm.double() * weights.can_see
    in_all_heads = entropies("entropy", pooled, pooled_plogp)
    # One product for all of them: sums over the queries of a type, and over those that see vision.
    of_query = torch.cat([*by_head.values(), *in_all_heads.values()])
    by_type = weights.of_query.T @ of_query
    of_type, of_seeing = by_type.split(keys.type_count, -2)
    parts = of_type.split([*[calls * heads] * len(by_head), *[calls] * len(in_all_heads)])
    of_name = dict(zip([*by_head, *in_all_heads], parts, strict=True))
    of_heads = {name: of_name[name].unflatten(0, (calls, heads)) for name in by_head}
    of_heads["share"] = of_seeing[: calls * heads].unflatten(0, (calls, heads))
    of_each = of_heads | {name: of_name[name] for name in in_all_heads}
    names, each = (
        of_each.keys(),
        zip(*(values.unbind() for values in of_each.values()), strict=True),
    )
    totals = [dict(zip(names, values, strict=True)) | weights.counts for values in each]
    for total, sums in zip(totals, of_calls, strict=True):
        total |= _of_keys(sums) | _of_sink(sums)
    return totals


def _of_sink(sums: QuerySums) -> dict[str, Tensor]:
    """What the learned sink takes of the queries of each type, where there is one."""
    if sums.sink is NOT_ASKED:
        return {}
    one_hot = sums.plan.one_hot.double()
    return {SINK: sums.sink.double() @ one_hot, f"{SINK}_count": one_hot.sum(0)}


def _joined(of_calls: Sequence[Tensor]) -> Tensor:
    return of_calls[0] if len(of_calls) == 1 else torch.cat([*of_calls])


def _of_keys(sums: QuerySums) -> dict[str, Tensor]:
    """What single vision keys receive, and maps."""
    vision, found = sums.keys.vision, {}
    for name in ("received", "received_head", "maps"):
        per_key = getattr(sums, name)
        if per_key.numel():
            found[name] = per_key[..., vision].double()
    if "maps" in found:  # the count gets an axis of keys, on which images are concatenated
        maps = found["maps"]
        count = sums.map_count.double().view(-1, *[1] * (maps.ndim - 1))
        found["map_count"] = count.expand_as(maps)
    return found


def means(total: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Divides sums by their counts."""
    table = {name: divide(total[name], total[count]) for name, count in COUNT_OF.items()}
    table["share"] = divide(total["share"], total["share_count"][:, None])
    for name in ("query_count", "share_count", "entropy_count", "head_entropy_count"):
        table[name] = total[name].astype(np.float32)
    for name in REMOVED.values():
        if name in total:
            table[name] = total[name].astype(np.float32)
    if SINK in total:
        table[SINK] = divide(total[SINK], total[f"{SINK}_count"])
    if "contribution" in total:
        table["contribution"] = divide(total["contribution"], total["query_count"])
    if "received_head" in total:
        received_head = divide(total["received_head"], total["received_count"][:, None])
        table["received_head"] = received_head.swapaxes(0, 1)  # (head, query_type, key)
    if "maps" in total:
        maps = divide(total["maps"], total["map_count"])
        table["maps"] = maps if maps.ndim == 2 else maps.swapaxes(0, 1)  # ([head], token, key)
    return table


def total_attention(
    table: dict[str, np.ndarray], queries: Int[np.ndarray, "type"]
) -> Float[np.ndarray, "head type"]:
    """What so many queries of each type give in all, to keys of all types and a learned sink."""
    seen = table["query_count"] > 0  # where none is, the mass is NaN: there is none to count
    total = np.where(seen, table["mass"] * table["query_count"], 0).sum(-1)
    if SINK in table:
        total = total + np.nan_to_num(table[SINK]) * queries
    return total


def divide(
    total: Float[np.ndarray, "*axes"], count: Float[np.ndarray, "*count_axes"]
) -> Float[np.ndarray, "*axes"]:
    """The mean, in float32. A count of 0 gives NaN: there is nothing to average."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan).astype(np.float32)


def merge(
    total: dict[str, Any], more: dict[str, Any], *, concatenate_keys: bool = False
) -> dict[str, Any]:
    """Adds sums and counts to `total`, exactly. `concatenate_keys`: the keys are those of different
    images.
    """
    for name, value in more.items():
        if concatenate_keys and name in PER_KEY:
            total[name] = np.concatenate([total[name], value], -1)
        else:  # some calls have counts of removed queries
            total[name] = total.get(name, 0) + value
    return total
