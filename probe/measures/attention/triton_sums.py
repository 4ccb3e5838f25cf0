"""The sums of an attention call on a GPU by Triton, where it is installed (the extra `gpu`).

The numbers are those of `tensor_sums.py`, in two passes over the scores that are never
stored: one by head, one over heads (`triton_kernels.py`). Nothing waits for the device.
"""

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn

from probe.hooks.attention_call import AttentionCall, bias
from probe.measures.attention.query_plan import BLOCK_QUERIES, QueryPlan, query_plan
from probe.measures.attention.query_sums import Extras, QuerySums
from probe.measures.attention.tensor_sums import tensor_sums
from probe.measures.attention.typed_keys import TypedKeys

KERNELS = "probe.measures.attention.triton_kernels"  # imported late: it needs triton
LEAST = 16  # the smallest side of a product in Triton
BLOCK = 64  # queries and keys of a program
TOLERANCE = 1e-5


def is_triton_for(call: AttentionCall, extras: Extras) -> bool:
    """Whether `triton_sums` can take this call: on a GPU, and nothing is asked for that needs the
    weights themselves.
    """
    on_gpu = call.query.device.type == "cuda" and type(call.query) is torch.Tensor
    is_plain = call.rule is not None and call.rule.is_plain  # the kernels know no other
    is_asked = on_gpu and is_plain and extras == Extras()
    return is_asked and works(call.query.device, call.query.dtype)


@cache
def works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton is here and gives the right sums of a small call on this device: tried out
    once and never assumed, for compilers and devices differ.
    """
    if find_spec("triton") is None:
        return False
    query, key = torch.randn(2, 1, 4, 80, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    on_host, on_device = (
        AttentionCall("trial", nn.Identity(), q, k, k, None, None, 0.3, True, None, {})
        for q, k in ((query, key), (query.to(device), key.to(device)))
    )
    ids = np.arange(80) // 20 % 3
    host, there = (TypedKeys(ids, 3, ids, ids == 1, x) for x in (torch.device("cpu"), device))
    try:
        sums = triton_sums(on_device, 0, there, query_plan(on_device, 0, there))
    except Exception as error:  # whatever a compiler for GPUs raises: tensor operations remain
        warnings.warn(f"probe: Triton is not used on {device} ({error})", stacklevel=2)
        return False
    expected = tensor_sums(on_host, 0, host, query_plan(on_host, 0, host))
    names = ("mass", "plogp", "pooled", "pooled_plogp", "received")
    pairs = ((getattr(sums, name).cpu(), getattr(expected, name)) for name in names)
    worst = max(float((got - right).abs().max()) for got, right in pairs)
    if worst > TOLERANCE:
        warnings.warn(f"probe: Triton is not used on {device} (off by {worst:.1g})", stacklevel=2)
    return worst <= TOLERANCE


def triton_sums(call: AttentionCall, row: int, keys: TypedKeys, plan: QueryPlan) -> QuerySums:
    """The sums of one row of a call. A mask is taken some dozens of queries at a time."""
    sums = QuerySums.empty(plan, call.query.shape[1], keys, Extras())
    step = len(plan) if call.effective_mask is None else BLOCK_QUERIES
    for start in range(0, len(plan), max(1, step)):
        _add(call, row, sums, slice(start, min(start + step, len(plan))))
    return sums


def _add(call: AttentionCall, row: int, sums: QuerySums, queries: slice) -> None:
    kernels: Any = import_module(KERNELS)
    plan, keys = sums.plan, sums.keys
    query, key = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (call.query[row], call.key[row])
    )
    heads, dim, types = query.shape[0], query.shape[-1], keys.type_count
    count, key_count = queries.stop - queries.start, call.key_count
    has_bias = call.effective_mask is not None
    mask_bias = query
    if has_bias:
        position = plan.indices["position"][queries]
        mask_bias = bias(call, row, position, key_count).contiguous()
    query_blocks, key_blocks = -(-count // BLOCK), -(-key_count // BLOCK)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device=query.device)

    lse, mass, plogp = (empty(heads, count, *axes) for axes in ((), (types,), (types,)))
    pooled, pooled_plogp = (empty(key_blocks, count, types) for _ in range(2))
    received = empty(query_blocks, types, key_count)
    span = slice(plan.first, plan.first + key_count)
    rows, begin, end = (plan.indices[name][queries] for name in ("query", "begin", "end"))
    strides = (query.stride(0), query.stride(1), key.stride(0), key.stride(1), key_count)
    sizes: dict[str, Any] = {
        "has_bias": has_bias,
        # Triton's interpreter has no products of half precision.
        "upcast": query.dtype == torch.float32 or query.device.type == "cpu",
        "types": types,
        "type_block": max(LEAST, 1 << (types - 1).bit_length()),
        "dim_block": max(LEAST, 1 << (dim - 1).bit_length()),
        "query_block": BLOCK,
        "key_block": BLOCK,
    }
    group = heads // len(key)
    read = (query, key, mask_bias, rows, begin, end, keys.device_ids[span])
    kernels.by_head[(query_blocks, heads)](
        *read, lse, mass, plogp, count, key_count, dim, group, call.scaling, *strides, **sizes
    )
    kernels.over_heads[(query_blocks, key_blocks)](
        *read,
        plan.one_hot[queries].contiguous(),
        lse,
        pooled,
        pooled_plogp,
        received,
        count,
        key_count,
        dim,
        heads,
        group,
        call.scaling,
        *strides,
        **sizes,
    )
    sums.mass[:, queries], sums.plogp[:, queries] = mass, plogp.double()
    sums.pooled[queries] = pooled.sum(0, dtype=torch.float64)
    sums.pooled_plogp[queries] = pooled_plogp.sum(0, dtype=torch.float64)
    sums.received[:, span] += received.sum(0)
