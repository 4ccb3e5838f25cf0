"""The two ways to change what a query attends to in one attention call: mask keys, or replace keys
and values.

Both keep the model's own mask as well, so that a measurement still knows what would be visible
without the intervention.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from probe.hooks.attention_call import AttentionCall, as_bool, with_hidden
from probe.hooks.attention_tap import Kernel, Output
from probe.hooks.tracked_sequence import TrackedSequence


def mask_keys(
    call: AttentionCall,
    now: TrackedSequence,
    queries: Bool[Tensor, "batch position"],
    keys: Bool[Tensor, "batch position"],
) -> AttentionCall:
    """The call in which these queries cannot see these keys. A query that would be left without any
    key keeps itself, since the mean over no keys is undefined."""
    queries, keys = now.of_queries(queries), now.of_keys(keys, call.key_count)
    hidden = (queries[:, :, None] & keys[:, None])[:, None].to(call.key.device)
    if not hidden.any():
        return call
    mask = (
        causal_mask(call)
        if call.effective_mask is None
        else call.effective_mask[..., : call.key_count]
    )
    mask = with_hidden(mask, hidden)
    bereft = hidden.any(-1, keepdim=True) & ~as_bool(mask).any(-1, keepdim=True)
    if bereft.any():
        place = torch.arange(call.key_count, device=mask.device)
        alone = bereft & (
            place == now.past - now.first_key(call.key_count) + place[: call.query_count, None]
        )
        mask = mask | alone if mask.dtype == torch.bool else mask.masked_fill(alone, 0)
    return call.with_mask(mask)


def causal_mask(call: AttentionCall) -> Bool[Tensor, "1 1 query key"]:
    """The visible keys of a call without a mask."""
    everything = torch.ones(
        1, 1, call.query_count, call.key_count, dtype=torch.bool, device=call.key.device
    )
    return everything.tril() if call.causal else everything


def replace_keys_values(
    call: AttentionCall, kernel: Kernel, queries: Bool[Tensor, "batch query"], **changed: Tensor
) -> Output:
    """Runs a call in which these queries get other keys or values (`key=`, `value=`); all other
    queries keep the original ones.

    With queries of both kinds the kernel runs twice; `active_queries` marks those whose output
    is used.
    """
    queries = queries.to(call.key.device)
    active = torch.ones_like(queries) if call.active_queries is None else call.active_queries
    changed_queries, others = active & queries, active & ~queries
    if not changed_queries.any():
        return kernel(call)
    if not others.any():
        return kernel(replace(call, **changed))
    output, weights = kernel(replace(call, active_queries=changed_queries, **changed))
    # the others count once
    rest = replace(call, active_queries=others, removed_queries=None, silent_queries=None)
    original, original_weights = kernel(rest)
    if weights is not None and original_weights is not None:
        weights = torch.where(queries[:, None, :, None], weights, original_weights)
    return torch.where(queries[:, :, None, None], output, original), weights
