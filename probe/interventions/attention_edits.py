"""The two ways to change what a query reads in one attention call: hide keys from it, or let it
read others.

Both keep the model's own mask beside the new one, so that a measurement still knows what would have
been visible.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from probe.hooks.attention_call import AttentionCall, as_bool, with_hidden
from probe.hooks.attention_tap import Kernel, Output
from probe.hooks.sequence_tracker import TrackedSequence


def mask_keys(
    call: AttentionCall,
    now: TrackedSequence,
    queries: Bool[Tensor, "batch position"],
    keys: Bool[Tensor, "batch position"],
) -> AttentionCall:
    """The call in which these queries cannot see these keys. A query that would be left with no key
    at all keeps itself: an average over nothing has no value."""
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
    """What a call without a mask sees."""
    everything = torch.ones(
        1, 1, call.query_count, call.key_count, dtype=torch.bool, device=call.key.device
    )
    return everything.tril() if call.causal else everything


def replace_keys_values(
    call: AttentionCall, kernel: Kernel, queries: Bool[Tensor, "batch query"], **changed: Tensor
) -> Output:
    """Runs a call in which these queries find other keys or values (`key=`, `value=`), and all
    others their own.

    Where both kinds ask, the kernel runs twice, and each time `active_queries` says whose output is used.
    """
    queries = queries.to(call.key.device)
    active = torch.ones_like(queries) if call.active_queries is None else call.active_queries
    ours, others = active & queries, active & ~queries
    if not ours.any():
        return kernel(call)
    if not others.any():
        return kernel(replace(call, **changed))
    output, weights = kernel(replace(call, active_queries=ours, **changed))
    own_output, own_weights = kernel(replace(call, active_queries=others))
    if weights is not None and own_weights is not None:
        weights = torch.where(queries[:, None, :, None], weights, own_weights)
    return torch.where(queries[:, :, None, None], output, own_output), weights
