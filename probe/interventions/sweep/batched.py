"""All cases of a question through the decoder at once: what a sweep does where sharing is exact."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from probe.errors import ProbeError
from probe.hooks.model_structure import max_positions
from probe.interventions.sweep.case_batch import CaseBatch
from probe.interventions.sweep.layer_sets import ANOTHER_IMAGE
from probe.interventions.sweep.prefix_attention import VisionView
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.interventions.sweep.sequential import Outcome
from probe.interventions.sweep.visibility import FREEZING, MASKED, SEEN, SWAPPED, ZEROED, Visibility
from probe.subject.inputs import Inputs
from probe.subject.prefix_cache import Known, PrefixMemory
from probe.subject.subject import Subject


@dataclass(frozen=True)
class BatchedCases:
    """`visibility`: of each layer, by case."""

    subject: Subject
    mode: str
    visibility: Mapping[str, tuple[Visibility, ...]]
    memory: PrefixMemory
    max_new_tokens: int

    def __call__(self, question: SamplePrompts, names: Sequence[str]) -> Outcome:
        """These cases. Another image is one of the rows where its prompt differs in vision tokens
        only, else apart.
        """
        if self.mode == "swap" and not question.other_fits:
            raise ProbeError(
                "drop_sweep",
                expected="a donor with vision tokens in the same places",
                got="one with another prompt",
                fix="pass a donor= of the same size",
            )
        _, known = self.memory.of(question.inputs)
        inside = [name for name in names if name != ANOTHER_IMAGE or self._same_words(question)]
        outcome = self._rows(question, question.inputs, *self._views(inside, known, question))
        if len(inside) == len(names):
            return outcome
        assert question.other is not None  # else the case would not be among the names
        _, known = self.memory.of(question.other)
        view_of = torch.zeros(1, len(self.memory.stack.layers), dtype=torch.long)
        apart, place = (
            self._rows(question, question.other, [known.prefix.seen()], view_of),
            names.index(ANOTHER_IMAGE),
        )
        return Outcome(
            torch.cat([outcome.logits[:place], apart.logits, outcome.logits[place:]]),
            [*outcome.answers[:place], *apart.answers, *outcome.answers[place:]],
            outcome.row_layers + apart.row_layers,
        )

    def _same_words(self, question: SamplePrompts) -> bool:
        """Whether text comes to the LLM the same about the other image: where it was fused with it,
        it does not.
        """
        if question.other is None or not question.other_fits:
            return False
        own, other = self.memory.prompt(question.inputs), self.memory.prompt(question.other)
        return torch.equal(own.embeddings[:, ~own.vision], other.embeddings[:, ~own.vision])

    def _views(
        self, names: list[str], known: Known, question: SamplePrompts
    ) -> tuple[list[VisionView], Int[Tensor, "case layer"]]:
        """The views among these cases, and the number of that of each case in each layer."""
        prefix = known.prefix
        if not prefix.vision.any():
            return [prefix.seen()], torch.zeros(
                len(names), len(self.memory.stack.layers), dtype=torch.long
            )
        numbers: dict[Visibility, int] = {SEEN: 0, MASKED: 1}
        for name in names:
            for symbol in self.visibility[name]:
                numbers.setdefault(symbol, len(numbers))
        make = {SEEN: prefix.seen, MASKED: prefix.masked, ZEROED: prefix.zeroed,
                SWAPPED: lambda: prefix.swapped(self.memory.donor(question.inputs, question.other))}  # fmt: skip  # pyright: ignore[reportArgumentType]
        views = [make[s]() if isinstance(s, str) else self.memory.frozen(known, s) for s in numbers]
        return views, torch.tensor(
            [[numbers[symbol] for symbol in self.visibility[name]] for name in names]
        )

    def _rows(
        self, question: SamplePrompts, inputs: Inputs, views: list[VisionView], view_of: Tensor
    ) -> Outcome:
        prompt, _ = self.memory.of(inputs, question.gold[:-1])
        length, gold = inputs["input_ids"].shape[1], len(question.gold)
        tokens = min(
            self.max_new_tokens, (max_positions(self.memory.model) or sys.maxsize) - length
        )
        frozen = frozenset({1}) if self.mode in FREEZING else frozenset()  # the masked ones
        rows = CaseBatch(
            self.memory.model,
            self.memory.stack,
            views,
            view_of,
            prompt,
            length + max(tokens, gold),
            frozen,
        )
        logits = rows.prefill(max(gold, 1))
        return Outcome(
            logits,
            rows.decode(logits[:, 0], length, tokens, self.subject.vocabulary.end_ids),
            rows.row_layers,
        )
