"""What an attention kernel does to scores beside scaling and masking them.

    s = cap · tanh(q kᵀ · scaling / cap) + position_bias + mask
    a = exp(s) / (Σ exp(s) + exp(sink))

A cap keeps scores between -cap and cap. A position bias is learned, for each head and pair of
positions. A learned sink is one more score of each query: it takes weight and has no value, so the
weights of a query sum to less than 1. (Attention sinks, which are tokens, are another thing:
`measures/attention/sinks.py`.) Which of them a kernel applies is tried out: `own_kernel.py`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# The options of attention calls that give them, by their names in transformers
FIELDS = {"softcap": "cap", "s_aux": "sink", "sinks": "sink", "position_bias": "position_bias"}


@dataclass(frozen=True)
class ScoreRule:
    """The rule of one attention call; without any of them a plain softmax."""

    cap: float | None = None
    sink: Float[Tensor, "*axes"] | None = None  # (head), or (batch, head, query, 1)
    position_bias: Float[Tensor, "batch head query key"] | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any], applied: Collection[str]) -> "ScoreRule":
        """The rule of a kernel that applies these options of its call."""
        return cls(**{FIELDS[name]: options[name] for name in applied})

    @property
    def is_plain(self) -> bool:
        return self.cap is None and self.sink is None and self.position_bias is None

    @property
    def is_same_for_all_queries(self) -> bool:
        return self.position_bias is None and (self.sink is None or self.sink.ndim == 1)

    def bias_of(
        self, row: int, query: Int[Tensor, "query"], keys: slice
    ) -> Float[Tensor, "head query key"] | None:
        """What is added to the scores of these queries of a batch element, in float32."""
        if self.position_bias is None:
            return None
        of_row = self.position_bias[min(row, len(self.position_bias) - 1)]
        return of_row[:, query, keys].float()

    def sink_of(self, row: int, query: Int[Tensor, "query"]) -> Float[Tensor, "head query"] | None:
        """The sink's score for these queries of a batch element, in float32."""
        if self.sink is None:
            return None
        if self.sink.ndim == 1:
            return self.sink.float()[:, None].expand(-1, len(query))
        return self.sink[min(row, len(self.sink) - 1), :, query, 0].float()

    def of_row(self, row: int, first_query: int, first_key: int) -> "ScoreRule":
        """The rule of one batch element without its first queries and keys."""

        def part(values: Tensor, key: int) -> Tensor:
            one = min(row, len(values) - 1)
            return values[one : one + 1, :, first_query:, key:]

        bias, sink = self.position_bias, self.sink
        if bias is not None:
            bias = part(bias, first_key)
        if sink is not None and sink.ndim > 1:
            sink = part(sink, 0)
        return ScoreRule(self.cap, sink, bias)


PLAIN = ScoreRule()


def capped(scores: Float[Tensor, "*axes"], cap: float | None) -> Float[Tensor, "*axes"]:
    """Scaled scores under a cap, in place."""
    return scores if cap is None else scores.div_(cap).tanh_().mul_(cap)


def without_bias(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of a call whose learned biases are 0."""
    biases = [name for name, field in FIELDS.items() if field == "position_bias"]
    given = {name: options[name] for name in biases if options.get(name) is not None}
    return {**options, **{name: torch.zeros_like(bias) for name, bias in given.items()}}


def softmax_with_sink(
    scores: Float[Tensor, "*axes key"], sink: Float[Tensor, "*axes"] | None
) -> Float[Tensor, "*axes key"]:
    """Softmax over the keys, of which a sink of this score takes its part."""
    if sink is None:
        return torch.softmax(scores, -1)
    return torch.softmax(torch.cat([scores, sink[..., None]], -1), -1)[..., :-1]
