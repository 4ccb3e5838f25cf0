"""From sums of each query to means over the queries of a type: the second and third step of
`statistic.py`, which defines the numbers.

    totals = type_sums(sums, keys)              # sums over the queries of each type, and counts
    merge(totals, type_sums(other, keys))       # of another call, row or tile
    table = means(totals)                       # table["mass"]: (head, query_type, key_type)
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probe.measures.attention.query_sums import QuerySums
from probe.measures.attention.typed_keys import TypedKeys

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
# Variables of a table with an axis of keys, on which different images are concatenated.
PER_KEY = ("received", "received_count", "received_head", "maps", "map_count")


def type_sums(sums: QuerySums, keys: TypedKeys) -> dict[str, Tensor]:
    """Sums over the queries of each type, and the counts that they are divided by."""
    plan, mass = sums.plan, sums.mass.double()
    visible = plan.visible.double()
    can_see = (visible > 0).double()
    all_visible = visible.sum(-1, keepdim=True)
    # 1 ÷ (visible keys of the type ÷ all visible keys)
    inverse_even = can_see * all_visible / visible.clamp(min=1)
    highest_entropy = visible.clamp(min=2).log()

    def entropies(name: str, weight: Tensor, plogp: Tensor) -> dict[str, Tensor]:
        """Entropy of each query within each type, its ratio to the highest possible, ln(visible
        keys), and 1 for the queries that have one.

        With w = Σ_B p, the entropy of p / w is ln w - (Σ_B p ln p) / w.
        """
        is_defined = (visible >= 2) & (weight > NOTHING)
        weight = weight.clamp(min=NOTHING)
        entropy = (weight.log() - plogp / weight).clamp(min=0) * is_defined
        ratio = entropy / highest_entropy
        return {name: entropy, f"{name}_ratio": ratio, f"{name}_count": is_defined.double()}

    by_head = {
        "mass": mass,
        "lift": mass * inverse_even,
        **entropies("head_entropy", mass, sums.plogp),
    }
    if sums.norm.numel():
        by_head["contribution"] = sums.norm.double() * can_see
    in_all_heads = {
        "query_count": can_see,
        **entropies("entropy", sums.pooled, sums.pooled_plogp),
    }
    # One product for all of them: sums over the queries of a type, and over those that see vision.
    query_type = plan.one_hot.double()
    sees_vision = query_type * (plan.vision_visible > 0)[:, None]
    of_query = torch.cat([*by_head.values(), torch.stack([*in_all_heads.values()])])
    by_type = torch.cat([query_type, sees_vision], -1).T @ of_query
    of_type, of_seeing = by_type.split(keys.type_count, -2)
    heads = len(mass)
    totals = dict(zip(by_head, of_type.split(heads), strict=False))
    totals |= dict(zip(in_all_heads, of_type[heads * len(by_head) :], strict=True))
    totals |= {
        "share": of_seeing[:heads],
        "share_count": sees_vision.sum(0),
        "received_count": plan.received_count[..., keys.vision],
    }
    for name in ("received", "received_head", "maps"):
        per_key = getattr(sums, name)
        if per_key.numel():
            totals[name] = per_key[..., keys.vision].double()
    if "maps" in totals:  # the count gets an axis of keys, on which images are concatenated
        maps = totals["maps"]
        count = sums.map_count.double().view(-1, *[1] * (maps.ndim - 1))
        totals["map_count"] = count.expand_as(maps)
    return totals


def means(total: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Divides sums by their counts."""
    table = {name: divide(total[name], total[count]) for name, count in COUNT_OF.items()}
    table["share"] = divide(total["share"], total["share_count"][:, None])
    for name in ("query_count", "share_count", "entropy_count", "head_entropy_count"):
        table[name] = total[name].astype(np.float32)
    if "contribution" in total:
        table["contribution"] = divide(total["contribution"], total["query_count"])
    if "received_head" in total:
        received_head = divide(total["received_head"], total["received_count"][:, None])
        table["received_head"] = received_head.swapaxes(0, 1)  # (head, query_type, key)
    if "maps" in total:
        maps = divide(total["maps"], total["map_count"])
        table["maps"] = maps if maps.ndim == 2 else maps.swapaxes(0, 1)  # ([head], token, key)
    return table


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
        else:
            total[name] = total[name] + value
    return total
