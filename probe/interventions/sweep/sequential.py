"""Every case of a sweep on its own: the whole model for each, under the intervention's context
manager.

What a sweep falls back to where nothing can be shared exactly.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.hooks.model_structure import LayerStack
from probe.interventions.drop import drop_vision
from probe.interventions.layer_target import Names
from probe.interventions.swap import swap_vision
from probe.interventions.sweep.layer_sets import ANOTHER_IMAGE, NO_VISION
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.subject.inputs import with_response
from probe.subject.subject import Subject


@dataclass(frozen=True)
class Outcome:
    """What came out of every case of one sample, and the row-layers that it took.

    `logits`: of the prompt's last token, and of the tokens of the gold answer but its last.
    """

    logits: Float[Tensor, "case token vocabulary"]
    answers: list[Tensor]  # generated ids
    row_layers: int


@dataclass(frozen=True)
class SequentialCases:
    """`cases`: the layers that each names. `queries`: who is cut off from vision, as `drop_vision`
    has it.
    """

    subject: Subject
    mode: str
    cases: Mapping[str, frozenset[int]]
    stack: LayerStack
    max_new_tokens: int
    queries: Names | None = None

    def __call__(self, question: SamplePrompts, names: Sequence[str]) -> Outcome:
        """One forward over prompt and gold answer, and one `generate`, for each of these cases."""
        logits, answers, gold = [], [], question.gold
        for name in names:
            inputs = question.other if name == ANOTHER_IMAGE else question.inputs
            asked = with_response(inputs, gold[:-1]) if len(gold) > 1 else inputs  # pyright: ignore[reportArgumentType]
            with self.intervention(name, question), torch.no_grad():
                output = self.subject.model(**asked, use_cache=False)  # pyright: ignore[reportCallIssue]
                logits.append(output.logits[0, -max(len(gold), 1) :])
                answers += self.subject.generate_ids(inputs, self.max_new_tokens)  # pyright: ignore[reportArgumentType]
        return Outcome(torch.stack(logits), answers, len(self.stack.layers) * len(names))

    def intervention(self, name: str, question: SamplePrompts) -> AbstractContextManager:
        """What is done to the model in a case."""
        model, layers = self.subject.model, sorted(self.cases[name])
        if not layers or not question.inputs.types.vision.any():
            return nullcontext()
        if name == NO_VISION:
            return drop_vision(model, layers, "mask", stack=self.stack.name)
        if self.mode == "swap":
            return swap_vision(model, layers, question.other)
        return drop_vision(model, layers, self.mode, stack=self.stack.name, queries=self.queries)
