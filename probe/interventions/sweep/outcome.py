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
    never: Sequence[int] = (),
) -> list[Tensor]:
    """At most `tokens` ids a row, each row up to and including the first of `end_ids`. `never`: ids
    that are not chosen, those of images and videos as in `generate_ids`.

    `logits` predict the first id. `next_logits(ids, step)` are those after the ids of step 0, 1 ...
    Raises ProbeError where any of them are not numbers.
    """
    ends = torch.tensor(list(end_ids), device=logits.device)
    refused = torch.tensor(list(never), dtype=torch.long, device=logits.device)

    def likeliest(logits: Float[Tensor, "row vocabulary"]) -> Int[Tensor, " row"]:
        ids = torch.arange(logits.shape[-1], device=logits.device)
        is_refused = torch.isin(ids, refused)
        return logits.masked_fill(is_refused, float("-inf")).argmax(-1)

    chosen = [likeliest(logits)]
    finite = logits.isfinite().all()
    ended = torch.isin(chosen[0], ends)
    while len(chosen) < tokens and not ended.all():
        logits = next_logits(chosen[-1], len(chosen) - 1)
        chosen.append(likeliest(logits))
        finite &= logits.isfinite().all()
        ended |= torch.isin(chosen[-1], ends)
    if not finite:
        raise not_finite("drop_sweep", logits.dtype, "in the logits of an answer")
    answers = torch.stack(chosen, 1).cpu()
    return [until_end(ids, end_ids) for ids in answers]
