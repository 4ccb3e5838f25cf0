"""The hidden states on their way through layers that run on some positions only.

`token_removal.py` moves them from layer to layer, and shows a `LayerInput` to those who decide what
is removed.
"""

from collections.abc import Callable, Mapping
from threading import local
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probe.hooks.attention_call import AttentionCall
from probe.hooks.kept_positions import KeptPositions


class HiddenStates(local):
    """The hidden states in the forward of a thread. Each thread has its own values.

    kept    the positions that the running layer keeps; None for all
    latest  all positions; removed ones with their last hidden state
    """

    kept: KeptPositions | None = None
    latest: Float[Tensor, "batch position hidden"] | None = None

    def start(self) -> None:
        """When a forward begins, nothing is removed; an interrupted one may have left some."""
        self.kept = self.latest = None

    def at_full_length(self, hidden: Tensor) -> Float[Tensor, "batch position hidden"]:
        """The hidden states of all positions: these, and the last ones of removed positions."""
        if self.kept is None or self.latest is None:
            return hidden
        return self.kept.put(hidden, self.latest.to(hidden.device), 1)

    def move(self, hidden: Tensor, kept: KeptPositions | None) -> Tensor:
        """From the positions of these hidden states to others, which are kept from now on."""
        if kept is self.kept:
            return hidden
        self.latest = everything = self.at_full_length(hidden)
        self.kept = kept
        return everything if kept is None else kept.take(everything, 1)


class LayerInput:
    """The input of a layer in a prompt's forward: the hidden states of the tokens kept so far."""

    def __init__(
        self,
        model: PreTrainedModel,
        index: int,
        hidden: Tensor,
        kwargs: Mapping[str, Any],
        states: HiddenStates,
        dry_run: Callable[[Tensor], AttentionCall],
    ):
        self.model, self.index, self.hidden = model, index, hidden
        self._kwargs, self._states, self._dry_run = kwargs, states, dry_run

    def whole(self) -> Float[Tensor, "batch position hidden"]:
        """All positions; removed ones with their last hidden state."""
        return self._states.at_full_length(self.hidden)

    def change(self, whole: Float[Tensor, "batch position hidden"]) -> None:
        """Replaces the hidden states of all positions, removed ones included."""
        kept = self._states.kept
        self.hidden = whole if kept is None else kept.take(whole, 1)
        self._states.latest = whole

    def positions(self) -> tuple[Tensor, Tensor] | None:
        """The model's rotary embeddings of all positions: cosines and sines, with the dimensions
        that turn together half the width apart, as Llama has them.
        """
        embeddings = self._kwargs.get("position_embeddings")
        if embeddings is None:
            return None
        if isinstance(embeddings, Tensor):  # one complex number a pair (Llama 4, DeepSeek-V2)
            cos, sin = embeddings.real, embeddings.imag
        else:
            cos, sin = embeddings
            if not _turns_neighbours(cos):
                return cos, sin
            cos, sin = cos[..., ::2], sin[..., ::2]
        return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)

    def attention_call(self) -> AttentionCall:
        """Dry run: the attention call this layer would make on the tokens kept so far. Its output
        is discarded.
        """
        return self._dry_run(self.hidden)


def _turns_neighbours(cos: Tensor) -> bool:
    """Whether each dimension turns together with the next one (Cohere)."""
    is_apart = torch.equal(*cos.chunk(2, -1))
    return not is_apart and torch.equal(cos[..., ::2], cos[..., 1::2])
