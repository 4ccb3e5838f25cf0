"""Attention over one shared prefix and the tokens of each row after it.

Every row attends to the keys of the prefix and to its own keys after it. Each part is a softmax;
the two are merged by their normalisers:

    out = w · prefix + (1 - w) · own,    w = sigmoid(lse_prefix - lse_own)

So the prefix is one matrix product for all rows: nothing is copied for a row.

    with routed(stack.attention, PrefixAttention(prefix.keys)):
        model.generate(input_ids=whole_prompts, past_key_values=suffix_cache(layers, prefix.length))
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.hooks.attention_call import AttentionCall, as_bool
from probe.hooks.attention_tap import Kernel

KeyValue = tuple[Tensor, Tensor]  # of one layer, (key_head, key, dim) or (row, key_head, key, dim)
Part = tuple[Tensor, Tensor]  # weighted mean of the values, and the log of the sum of exp(scores)

SCORES = {"cpu": 2**20}  # elements in a block of scores: 4 MB stay in a CPU's cache
SCORES_ELSEWHERE = 2**26


class PrefixAttention:
    """The attention function, for `routed`. `keys`: of the prefix, by attention module. `observe`
    is shown each call, whose keys are those after the prefix.
    """

    def __init__(
        self,
        keys: Mapping[str, KeyValue],
        observe: Callable[[AttentionCall], None] | None = None,
    ):
        self.keys = keys
        self.observe = observe

    def __call__(self, call: AttentionCall, kernel: Kernel) -> tuple[Tensor, None]:
        key, value = self.keys[call.name]
        own = attend(call.query, call.key, call.value, call.scaling, own_visible(call))
        shown = _visible_in_window(call, key.shape[1])
        output = merged(over_shared(call.query, key, value, call.scaling, shown), own)
        if self.observe is not None:
            self.observe(call)
        return output.to(call.query.dtype).transpose(1, 2).contiguous(), None


def own_visible(call: AttentionCall) -> Bool[Tensor, "_ 1 query key"] | None:
    """What each query sees of the keys after the prefix, None where that is all of them. A query
    that is padding sees itself at least, so that it stays a number.
    """
    keys = call.key_count
    mask = call.model_mask
    if mask is None and call.query_count == 1:
        return None
    itself = torch.ones(call.query_count, keys, dtype=torch.bool, device=call.key.device)
    itself = itself.tril(keys - call.query_count)
    causal = itself[None, None]
    if mask is None:
        return causal
    if mask.ndim == 2:  # over keys
        visible = causal & mask[:, None, None, -keys:].bool()
    else:
        visible = as_bool(mask[..., -keys:])
    return visible | (itself & ~itself.tril(keys - call.query_count - 1))


def _visible_in_window(call: AttentionCall, prefix: int) -> Bool[Tensor, "row 1 query key"] | None:
    """What each query sees of the prefix: None for all of it, as where no sliding window ends in
    it.
    """
    length = prefix + call.key_count
    mask = call.model_mask
    if call.window is None or call.window >= length:
        return None
    if mask is not None and mask.ndim == 4:
        return as_bool(mask[..., :prefix]).expand(call.row_count, -1, -1, -1)
    query = torch.arange(length - call.query_count, length, device=call.key.device)
    key = torch.arange(prefix, device=call.key.device)
    visible = key > query[:, None] - call.window
    return visible.expand(call.row_count, 1, -1, -1)


def over_shared(
    query: Float[Tensor, "row head query dim"],
    key: Float[Tensor, "key_head key key_dim"],
    value: Float[Tensor, "key_head key value_dim"],
    scaling: float,
    visible: Bool[Tensor, "row 1 query key"] | None = None,
) -> Part:
    """Queries of many rows over shared keys, as one product. Of no keys the width is not known: it
    is 1.
    """
    rows, heads, tokens, dim = query.shape
    if not key.shape[1]:
        out = torch.zeros_like(query[..., :1], dtype=_precise(query))
        return out, torch.full_like(out[..., 0], -torch.inf)
    all_rows = query.transpose(0, 1).reshape(1, heads, rows * tokens, dim)
    shown = None if visible is None else visible.reshape(rows * tokens, -1)
    out, lse = attend(all_rows, key[None], value[None], scaling, shown)
    out = out.view(heads, rows, tokens, -1)
    lse = lse.view(heads, rows, tokens)
    out = out.transpose(0, 1)
    lse = lse.transpose(0, 1)
    if visible is not None:
        blind = ~visible.any(-1)
        out = out.masked_fill(blind[..., None], 0)
        lse = lse.masked_fill(blind, -torch.inf)
    return out, lse


def merged(prefix: Part, own: Part) -> Tensor:
    prefix_output, prefix_lse = prefix
    own_output, own_lse = own
    prefix_share = torch.sigmoid(prefix_lse - own_lse)
    return torch.lerp(own_output, prefix_output, prefix_share[..., None])


def attend(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch key_head key dim"],
    value: Float[Tensor, "batch key_head key value_dim"],
    scaling: float,
    visible: Bool[Tensor, "query key"] | Bool[Tensor, "_ 1 query key"] | None = None,
) -> Part:
    """Softmax attention and its normaliser: (batch, head, query, dim) and (batch, head, query), in
    float32 at least. `visible`: for all rows, or for each.

    Computed in blocks of queries; with fewer key heads than heads, the queries of one key head are
    rows of one product.
    """
    batch, heads, _, dim = query.shape
    precise = _precise(query)
    key_heads = key.shape[1]
    queries = query.reshape(batch, key_heads, -1, dim).to(precise) * scaling
    keys = key.to(precise).mT
    hidden = None
    if visible is not None:
        of_rows = visible if visible.ndim == 4 else visible[None, None]
        hidden = ~of_rows.repeat(1, 1, heads // key_heads, 1)
    size = max(
        1, SCORES.get(query.device.type, SCORES_ELSEWHERE) // (batch * key_heads * key.shape[2])
    )
    parts = []
    for start in range(0, queries.shape[2], size):
        scores = torch.matmul(queries[:, :, start : start + size], keys)
        if hidden is not None:
            scores.masked_fill_(hidden[:, :, start : start + size], -torch.inf)
        weights = torch.softmax(scores, -1)
        lse = scores.amax(-1) - weights.amax(-1).log()
        parts.append((torch.matmul(weights.to(value.dtype), value).to(precise), lse))
    out, lse = (
        parts[0] if len(parts) == 1 else (torch.cat(each, 2) for each in zip(*parts, strict=True))
    )
    return out.reshape(*query.shape[:3], value.shape[-1]), lse.reshape(query.shape[:3])


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
