"""What every query gives to every type of key, without the query × key map: the fastest way that
there is for a call.

    compiled.py       C, on a CPU
    triton_sums.py    Triton, on a GPU
    tensor_sums.py    tensor operations, anywhere, and for what needs the weights themselves

All three give the same numbers. A module that returns its weights is summed here.

    sums = query_sums(call, row=0, keys=keys)     # sums.mass: (head, query, type)
"""

import torch

from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.measures.attention.compiled import compiled_sums, is_compiled_for
from probe.measures.attention.query_plan import QueryPlan, query_plan
from probe.measures.attention.query_sums import Extras, QuerySums
from probe.measures.attention.tensor_sums import NO_EXTRAS, tensor_sums
from probe.measures.attention.triton_sums import is_triton_for, triton_sums
from probe.measures.attention.typed_keys import TypedKeys


@torch.no_grad()
def query_sums(
    call: AttentionCall,
    row: int,
    keys: TypedKeys,
    extras: Extras = NO_EXTRAS,
    *,
    first: int = 0,
    plan: QueryPlan | None = None,
) -> QuerySums:
    """The sums of one row of an attention call, whose first key is at position `first` of `keys`;
    `plan`: the one of this call, where it is known.

    Float32 whatever the model's dtype: queries and keys in half precision are exactly representable
    in it.
    """
    plan = query_plan(call, row, keys, first) if plan is None else plan
    if is_compiled_for(call, extras):
        return compiled_sums(call, row, keys, plan)
    if is_triton_for(call, extras):
        return triton_sums(call, row, keys, plan)
    return tensor_sums(call, row, keys, plan, extras)


@torch.no_grad()
def weight_sums(
    call: AttentionWeights, row: int, keys: TypedKeys, plan: QueryPlan, extras: Extras = NO_EXTRAS
) -> QuerySums:
    """The same sums, of a module that already returns its (head, query, key) weights."""
    weights = call.weights[row].float()[:, plan.indices["query"]]
    sums = QuerySums.empty(plan, len(weights), keys, extras)
    sums.mass = keys.sum(weights)
    sums.plogp = keys.sum(torch.xlogy(weights, weights).double())
    every = slice(None)
    sums.add_heads(every, every, weights, 0)
    sums.add_average(every, weights.mean(0), 0)
    return sums
