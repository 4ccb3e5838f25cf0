"""A double of flash attention for a CPU."""

import torch


def flash(module, query, key, value, attention_mask, scaling=None, **options):
    """Flash attention as transformers calls it: a mask over keys, or none, and causality from the
    lengths.
    """
    assert attention_mask is None or attention_mask.ndim == 2
    queries, keys = query.shape[2], key.shape[2]
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None, -keys:].bool()
        mask = mask | torch.eye(queries, keys, dtype=torch.bool) if queries == keys else mask
    weights = query @ key.transpose(-1, -2) * scaling + torch.where(
        mask, 0.0, torch.finfo(query.dtype).min
    )
    return (weights.softmax(-1) @ value).transpose(1, 2).contiguous(), None
