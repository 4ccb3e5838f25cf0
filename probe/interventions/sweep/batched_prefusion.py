"""All cases of pre-fusion at once: the text attends to the image once for each case, then the LLM
runs all cases as one batch.

Sharing is exact because vision tokens of pre-fusion attend to vision only: dropping them changes
what others read, not the vision tokens. So they are computed once an image, and each case costs its
compressed tokens and text. With "mask_frozen" they skip layers and differ in each case, so the
image is encoded again.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from probe.hooks.layer_arguments import cache_argument
from probe.hooks.model_structure import max_positions, output_head, text_decoder
from probe.interventions.sweep.layer_sets import ALWAYS, ANOTHER_IMAGE
from probe.interventions.sweep.outcome import Outcome, decode_greedily
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.interventions.sweep.sequential import SequentialCases
from probe.subject.greedy_words import GreedyWords
from probe.subject.image_prefix import EmbeddedPrompt
from probe.subject.prefix_cache import EncodedImages


@dataclass(frozen=True)
class BatchedPrefusion:
    """`sequential` holds the cases and the intervention of each."""

    sequential: SequentialCases
    images: EncodedImages

    def __call__(self, prompts: SamplePrompts, names: Sequence[str]) -> Outcome:
        """The outcome of these cases. "Another image" is in the batch where its vision tokens are
        in the same places; otherwise it runs by itself.
        """
        batched = [name for name in names if prompts.other_fits or name != ANOTHER_IMAGE]
        outcome = self._run(prompts, batched)
        if len(batched) == len(names):
            return outcome
        other = self.sequential(prompts, [ANOTHER_IMAGE])
        return outcome.insert(names.index(ANOTHER_IMAGE), other)

    def untouched_logits(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "1 vocabulary"]:
        """Logits of a prompt's last token when nothing is dropped."""
        prompt = EmbeddedPrompt.of(self._model, self.images.encoded(inputs))
        return self._logits(prompt.embeddings, prompt.positions, None, 1)[:, 0]

    @property
    def _model(self) -> Any:
        return self.sequential.subject.model

    def _run(self, prompts: SamplePrompts, names: Sequence[str]) -> Outcome:
        embedded = [self._embed(prompts, name) for name in names]
        embeddings = torch.cat([prompt.embeddings for prompt in embedded])
        positions = embedded[0].positions
        gold = len(prompts.gold)
        cache = DynamicCache(config=self._model.config.get_text_config())
        logits = self._logits(embeddings, positions, cache, max(gold, 1))
        if gold > 1:
            cache.crop(1 - gold)  # the generated answer must not depend on the gold answer
        last_position = positions[..., prompts.length - 1 : prompts.length]

        def next_logits(ids: Tensor, step: int) -> Tensor:
            words = self._model.get_input_embeddings()(ids[:, None])
            return self._logits(words, last_position + 1 + step, cache, 1)[:, 0]

        room = (max_positions(self._model) or sys.maxsize) - prompts.length
        tokens = min(self.sequential.max_new_tokens, room)
        end_ids = self.sequential.subject.vocabulary.end_ids
        words = GreedyWords.of(self._model, prompts.inputs["input_ids"])
        answers = decode_greedily(logits[:, 0], next_logits, tokens, end_ids, words)
        return Outcome(logits, answers, len(self.sequential.stack.layers) * len(names))

    def _embed(self, prompts: SamplePrompts, name: str) -> EmbeddedPrompt:
        """What the LLM receives in a case: the prompt, and the gold answer but its last token."""
        inputs: Any = prompts.with_gold(prompts.of_case(name))
        if self.sequential.mode != "mask_frozen" or name in ALWAYS:
            inputs = self.images.encoded(inputs)
        with self.sequential.intervention(name, prompts):
            return EmbeddedPrompt.of(self._model, inputs)

    def _logits(
        self, embeddings: Tensor, positions: Tensor, cache: DynamicCache | None, kept: int
    ) -> Float[Tensor, "row kept vocabulary"]:
        """Logits of the last `kept` tokens."""
        decoder = text_decoder(self._model)
        hidden = decoder(
            inputs_embeds=embeddings,
            position_ids=positions,
            use_cache=cache is not None,
            **cache_argument(decoder, cache),
        ).last_hidden_state
        return output_head(self._model)(hidden[:, -kept:])
