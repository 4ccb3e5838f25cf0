"""Attention that chooses by their content which tokens a query sees (sparse attention with an
indexer: DeepSeek V3.2, GLM-5, MiniMax M3).

Such a module is given a mask like any other, and hides more from its kernel. What it hides depends
on the hidden states of all tokens, those of an image too: to hide image tokens from the kernel then
leaves their influence on the choice. Only calls in which something is hidden in this way are
concerned; as long as a sequence is short, nothing is.

    given = GivenMasks()
    layer.register_forward_pre_hook(given.note, with_kwargs=True)
    given.require_all_shown("drop_vision", call)      # ProbeError where the module chose
"""

from collections.abc import Mapping
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, as_bool
from probe.hooks.layer_arguments import hidden_first


class _Last(local):
    """The mask that the running layer of a thread was given."""

    mask: Tensor | None = None
    known: bool = False


class GivenMasks:
    """The mask that each layer is given, for the calls that its attention makes."""

    def __init__(self):
        self._last = _Last()

    def note(self, layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """A forward pre-hook of layers."""
        _, named = hidden_first(layer, args, kwargs)
        self._last.known = "attention_mask" in named
        self._last.mask = named.get("attention_mask")

    def require_all_shown(self, called: str, call: AttentionCall) -> None:
        """Raises ProbeError for a call that shows a query less than the layer's mask does."""
        shown = call.model_mask
        is_given = shown is self._last.mask or not self._last.known
        if not isinstance(shown, Tensor) or shown.ndim != 4 or is_given:  # flex has no tensor
            return
        allowed = self._allowed(call)
        if allowed is None or not bool((allowed & ~as_bool(shown)).any()):
            return
        raise ProbeError(
            called,
            expected="attention whose mask alone says which tokens a query sees",
            got=f"{call.name}, which chooses them by their content, images included",
            fix="choose other layers, or a prompt of no more tokens than it chooses",
        )

    def _allowed(self, call: AttentionCall) -> Tensor | None:
        """What the layer's mask allows (batch, 1, query, key), None where it is of other tokens."""
        given = self._last.mask
        queries = call.query_count
        keys = call.key_count
        causal = torch.ones(queries, keys, dtype=torch.bool, device=call.key.device)
        causal = causal.tril(keys - queries)[None, None]
        if given is None:
            return causal
        if given.ndim == 2 and given.shape[1] in (queries, keys):
            of_keys = given.bool() if given.shape[1] == keys else None
            return causal if of_keys is None else causal & of_keys[:, None, None]
        if given.ndim == 4 and given.shape[-2:] == (queries, keys):
            return as_bool(given)
        return None
