"""All cases of a sample through the LLM at once: what a sweep does where sharing is exact."""

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
from probe.interventions.sweep.outcome import Outcome
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.interventions.sweep.visibility import (
    FREEZING,
    MASKED,
    SEEN,
    SWAPPED,
    ZEROED,
    Visibility,
)
from probe.subject.greedy_words import GreedyWords
from probe.subject.image_prefix import VisionView
from probe.subject.inputs import Inputs
from probe.subject.prefix_cache import CachedPrefix, PrefixCache
from probe.subject.subject import Subject

Views = tuple[
    list[VisionView], Int[Tensor, "case layer"]
]  # and the number of each case's in a layer


@dataclass(frozen=True)
class BatchedCases:
    """`visibility`: of each layer, by case."""

    subject: Subject
    mode: str
    visibility: Mapping[str, tuple[Visibility, ...]]
    cache: PrefixCache
    max_new_tokens: int

    def __call__(self, prompts: SamplePrompts, names: Sequence[str]) -> Outcome:
        """The outcome of these cases. "Another image" is in the batch where its prompt differs in
        vision tokens only; otherwise it runs by itself.
        """
        if self.mode == "swap" and not prompts.other_fits:
            raise ProbeError(
                "drop_sweep",
                expected="a donor with vision tokens in the same places",
                got="one with another prompt",
                fix="pass a donor= of the same size",
            )
        batched = [name for name in names if name != ANOTHER_IMAGE or self._same_text(prompts)]
        _, cached = self.cache.of(prompts.inputs)
        outcome = self._run(prompts, prompts.inputs, self._views(batched, cached, prompts))
        if len(batched) == len(names):
            return outcome
        assert prompts.other is not None  # otherwise the case would not be among the names
        _, cached = self.cache.of(prompts.other)
        view_of = torch.zeros(1, len(self.cache.stack.layers), dtype=torch.long)
        other = self._run(prompts, prompts.other, ([cached.prefix.unmodified()], view_of))
        return outcome.insert(names.index(ANOTHER_IMAGE), other)

    def _same_text(self, prompts: SamplePrompts) -> bool:
        """Whether the LLM receives equal text embeddings with the other image; where text was fused
        with the image, it does not.
        """
        if prompts.other is None or not prompts.other_fits:
            return False
        prompt = self.cache.prompt(prompts.inputs)
        other = self.cache.prompt(prompts.other)
        text = prompt.embeddings[:, ~prompt.vision]
        other_text = other.embeddings[:, ~other.vision]
        return torch.equal(text, other_text)

    def _views(self, names: list[str], cached: CachedPrefix, prompts: SamplePrompts) -> Views:
        """The views that these cases need, each once."""
        prefix = cached.prefix
        if not prefix.vision.any():
            view_of = torch.zeros(len(names), len(self.cache.stack.layers), dtype=torch.long)
            return [prefix.unmodified()], view_of
        numbers: dict[Visibility, int] = {SEEN: 0, MASKED: 1}
        for name in names:
            for seen in self.visibility[name]:
                numbers.setdefault(seen, len(numbers))
        views = [self._view(seen, cached, prompts) for seen in numbers]
        view_of = torch.tensor(
            [[numbers[seen] for seen in self.visibility[name]] for name in names]
        )
        return views, view_of

    def _view(self, seen: Visibility, cached: CachedPrefix, prompts: SamplePrompts) -> VisionView:
        if not isinstance(seen, str):
            return self.cache.frozen(cached, seen)
        if seen == SWAPPED:
            assert prompts.other is not None  # no other case swaps
            return cached.prefix.swapped(self.cache.donor(prompts.inputs, prompts.other))
        prefix = cached.prefix
        return {SEEN: prefix.unmodified, MASKED: prefix.masked, ZEROED: prefix.zeroed}[seen]()

    def _run(self, prompts: SamplePrompts, inputs: Inputs, views: Views) -> Outcome:
        model = self.cache.model
        prompt, _ = self.cache.of(inputs, prompts.gold[:-1])
        length = inputs["input_ids"].shape[1]
        gold = len(prompts.gold)
        room = (max_positions(model) or sys.maxsize) - length
        tokens = min(self.max_new_tokens, room)
        masked_view = 1  # as `_views` numbers them
        frozen = frozenset({masked_view}) if self.mode in FREEZING else frozenset()
        longest = length + max(tokens, gold)
        batch = CaseBatch(model, self.cache.stack, *views, prompt, longest, frozen)
        logits = batch.prefill(max(gold, 1))
        end_ids = self.subject.vocabulary.end_ids
        words = GreedyWords.of(model, inputs["input_ids"])
        answers = batch.decode(logits[:, 0], length, tokens, end_ids, words)
        return Outcome(logits, answers, batch.row_layers)
