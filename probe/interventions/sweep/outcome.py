"""What all ways of running the cases of one sample have in common: their result, and greedy
decoding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.hooks.finite_states import not_finite
from probe.subject.generation import until_end
from probe.subject.greedy_words import GreedyWords


@dataclass(frozen=True)
class Outcome:
    """The result of every case of one sample, and the row-layers that were computed for it.

    `logits`: of the prompt's last token, and of the gold answer's tokens but its last.
    """

    logits: Float[Tensor, "case token vocabulary"]
    answers: list[Tensor]  # generated ids
    row_layers: int

    def insert(self, position: int, other: "Outcome") -> "Outcome":
        """With the cases of another outcome from this position on."""
        before = self.logits[:position]
        after = self.logits[position:]
        return Outcome(
            torch.cat([before, other.logits, after]),
            [*self.answers[:position], *other.answers, *self.answers[position:]],
            self.row_layers + other.row_layers,
        )


def decode_greedily(
    logits: Float[Tensor, "row vocabulary"],
    next_logits: Callable[[Int[Tensor, " row"], int], Float[Tensor, "row vocabulary"]],
    tokens: int,
    end_ids: Sequence[int],
    words: GreedyWords,
) -> list[Tensor]:
    """At most `tokens` ids a row, each row up to and including the first of `end_ids`, chosen as
    `generate_ids` does.

    `logits` predict the first id. `next_logits(ids, step)` are those after the ids of step 0, 1 ...
    Raises ProbeError where any of them are not numbers.
    """
    ends = torch.tensor(list(end_ids), device=logits.device)
    answered = torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)
    chosen = words.likeliest(logits, answered)
    answered = chosen[:, None]
    finite = logits.isfinite().all()
    ended = torch.isin(chosen, ends)
    while answered.shape[1] < tokens and not ended.all():
        logits = next_logits(chosen, answered.shape[1] - 1)
        chosen = words.likeliest(logits, answered)
        answered = torch.cat([answered, chosen[:, None]], dim=1)
        finite &= logits.isfinite().all()
        ended |= torch.isin(chosen, ends)
    if not finite:
        raise not_finite("drop_sweep", logits.dtype, "in the logits of an answer")
    return [until_end(ids, end_ids) for ids in answered.cpu()]
