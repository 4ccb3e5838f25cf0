"""Every case of a sweep on its own: the whole model for each, under the intervention's context manager.

What a sweep falls back to where nothing can be shared exactly, and what its tests and its cost are measured against.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.inputs import Inputs, with_response
from probe.locate import Stack
from probe.subject import Subject


@dataclass(frozen=True)
class Outcome:
    """What came out of every case of one sample, and the row-layers that it took.

    `logits`: of the prompt's last token, and of the tokens of the gold answer but its last.
    """

    logits: Float[Tensor, "case token vocabulary"]
    answers: list[Tensor]  # ids
    row_layers: int


Intervention = Callable[[], AbstractContextManager]


def each_alone(
    subject: Subject,
    stack: Stack,
    cases: list[tuple[Inputs, Intervention]],
    gold: Int[Tensor, " token"],
    max_new_tokens: int,
) -> Outcome:
    """One forward over prompt and gold answer and one `generate` for each case."""
    logits, answers = [], []
    for inputs, intervention in cases:
        asked = with_response(inputs, gold[:-1]) if len(gold) > 1 else inputs
        with intervention(), torch.no_grad():
            forward = subject.model(**asked, use_cache=False)
            logits.append(forward.logits[0, -max(len(gold), 1) :])
            answers += subject.generate_ids(inputs, max_new_tokens)
    return Outcome(torch.stack(logits), answers, len(stack.layers) * len(cases))
