"""The two Triton kernels of `triton_sums.py`. Importing this file needs triton.

    by_head       one program a head and block of queries: walks along the keys with a running
                  maximum, and keeps ln Σ e^s and, for each type, Σ p and Σ p ln p
    over_heads    one program a block of queries and block of keys: with ln Σ e^s known, the heads
                  of the block are walked through, and their average leaves Σ p̄ and Σ p̄ ln p̄ of each
                  query by type, and what each key receives by type of query

Scores are added in float32 (tf32 off). No number is added to by two programs, so that results do
not depend on their order. A masked pair has the score HIDDEN, whose weight is exactly 0.
"""

# pyright: reportMissingImports=false, reportArgumentType=false

import triton
import triton.language as tl

HIDDEN = tl.constexpr(-1e30)


@triton.jit
def _scores(
    query, key, bias, rows, number, query_mask, key_start, key_count,
    query_stride, key_stride, bias_stride, begin, end, dim, scaling,
    has_bias: tl.constexpr, upcast: tl.constexpr, dim_block: tl.constexpr, key_block: tl.constexpr,
):  # fmt: skip
    """Scores of a block of queries by a block of keys of one head, and which pairs are seen."""
    d = tl.arange(0, dim_block)
    keys = key_start + tl.arange(0, key_block)
    q = tl.load(
        query + rows[:, None] * query_stride + d[None, :],
        mask=query_mask[:, None] & (d[None, :] < dim),
        other=0.0,
    )
    k = tl.load(
        key + keys[:, None] * key_stride + d[None, :],
        mask=(keys[:, None] < key_count) & (d[None, :] < dim),
        other=0.0,
    )
    # Products of half precision are exact in the float32 that they are added in.
    if upcast:
        q, k = q.to(tl.float32), k.to(tl.float32)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
    seen = (keys[None, :] >= begin[:, None]) & (keys[None, :] < end[:, None])
    if has_bias:
        s += tl.load(
            bias + number[:, None] * bias_stride + keys[None, :],
            mask=query_mask[:, None] & (keys[None, :] < key_count),
            other=0.0,
        )
    return tl.where(seen, s, HIDDEN), seen


@triton.jit
def by_head(
    query, key, bias, rows, begins, ends, key_types, lse, mass, plogp,
    query_count, key_count, dim, group, scaling,
    query_head_stride, query_stride, key_head_stride, key_stride, bias_stride,
    has_bias: tl.constexpr, upcast: tl.constexpr, types: tl.constexpr, type_block: tl.constexpr,
    dim_block: tl.constexpr, query_block: tl.constexpr, key_block: tl.constexpr,
):  # fmt: skip
    """lse (head, query); mass, plogp (head, query, type)."""
    block, head = tl.program_id(0), tl.program_id(1)
    number = block * query_block + tl.arange(0, query_block)
    inside = number < query_count
    row = tl.load(rows + number, mask=inside, other=0)
    begin = tl.load(begins + number, mask=inside, other=0)
    end = tl.load(ends + number, mask=inside, other=1)
    kind = tl.arange(0, type_block)
    top = tl.full([query_block], HIDDEN, tl.float32)
    z = tl.zeros([query_block], tl.float32)
    sums = tl.zeros([query_block, type_block], tl.float32)  # Σ e^(s - top) by type
    weighted = tl.zeros([query_block, type_block], tl.float32)  # Σ e^(s - top) (s - top) by type
    q, k = query + head * query_head_stride, key + (head // group) * key_head_stride
    first = tl.min(begin) // key_block * key_block
    for start in range(first, tl.max(end), key_block):
        s, seen = _scores(
            q, k, bias, row, number, inside, start, key_count,
            query_stride, key_stride, bias_stride, begin, end, dim, scaling,
            has_bias, upcast, dim_block, key_block,
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(s, 1))
        shift = top - new_top  # ≤ 0; at the first block there is nothing to rescale
        decay = tl.exp(shift)
        below = s - new_top[:, None]
        e = tl.where(seen, tl.exp(below), 0.0)
        keys = start + tl.arange(0, key_block)
        key_type = tl.load(key_types + keys, mask=keys < key_count, other=-1)
        is_type = (key_type[:, None] == kind[None, :]).to(tl.float32)
        weighted = (weighted + sums * tl.maximum(shift, -1e4)[:, None]) * decay[:, None]
        weighted += tl.dot(tl.where(seen, e * below, 0.0), is_type, input_precision="ieee")
        sums = sums * decay[:, None] + tl.dot(e, is_type, input_precision="ieee")
        z = z * decay + tl.sum(e, 1)
        top = new_top
    log_z = tl.log(z)
    p = sums / z[:, None]
    out = (head * query_count + number[:, None]) * types + kind[None, :]
    stored = inside[:, None] & (kind[None, :] < types)
    tl.store(mass + out, p, mask=stored)
    tl.store(plogp + out, weighted / z[:, None] - log_z[:, None] * p, mask=stored)
    tl.store(lse + head * query_count + number, top + log_z, mask=inside)


@triton.jit
def over_heads(
    query, key, bias, rows, begins, ends, key_types, query_weights, lse,
    pooled, pooled_plogp, received,
    query_count, key_count, dim, heads, group, scaling,
    query_head_stride, query_stride, key_head_stride, key_stride, bias_stride,
    has_bias: tl.constexpr, upcast: tl.constexpr, types: tl.constexpr, type_block: tl.constexpr,
    dim_block: tl.constexpr, query_block: tl.constexpr, key_block: tl.constexpr,
):  # fmt: skip
    """pooled, pooled_plogp (key block, query, type); received (query block, type, key)."""
    block, column = tl.program_id(0), tl.program_id(1)
    number = block * query_block + tl.arange(0, query_block)
    inside = number < query_count
    row = tl.load(rows + number, mask=inside, other=0)
    begin = tl.load(begins + number, mask=inside, other=0)
    end = tl.load(ends + number, mask=inside, other=1)
    start = column * key_block
    keys = start + tl.arange(0, key_block)
    kind = tl.arange(0, type_block)
    average = tl.zeros([query_block, key_block], tl.float32)
    if (start < tl.max(end)) & (start + key_block > tl.min(begin)):
        for head in range(0, heads):
            s, seen = _scores(
                query + head * query_head_stride, key + (head // group) * key_head_stride, bias,
                row, number, inside, start, key_count, query_stride, key_stride, bias_stride,
                begin, end, dim, scaling,
            has_bias, upcast, dim_block, key_block,
            )  # fmt: skip
            of_head = tl.load(lse + head * query_count + number, mask=inside, other=0.0)
            average += tl.where(seen, tl.exp(s - of_head[:, None]), 0.0)
    average = average / heads
    log_average = tl.log(tl.maximum(average, 1e-37))
    key_type = tl.load(key_types + keys, mask=keys < key_count, other=-1)
    is_type = (key_type[:, None] == kind[None, :]).to(tl.float32)
    out = (column * query_count + number[:, None]) * types + kind[None, :]
    stored = inside[:, None] & (kind[None, :] < types)
    tl.store(pooled + out, tl.dot(average, is_type, input_precision="ieee"), mask=stored)
    plogp = tl.dot(average * log_average, is_type, input_precision="ieee")
    tl.store(pooled_plogp + out, plogp, mask=stored)
    weights = tl.load(
        query_weights + number[None, :] * types + kind[:, None],
        mask=inside[None, :] & (kind[:, None] < types),
        other=0.0,
    )
    given = tl.dot(weights, average, input_precision="ieee")  # (type, key)
    place = (block * types + kind[:, None]) * key_count + keys[None, :]
    tl.store(received + place, given, mask=(kind[:, None] < types) & (keys[None, :] < key_count))
