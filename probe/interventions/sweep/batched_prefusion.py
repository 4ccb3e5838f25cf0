"""All cases of pre-fusion together: the words read the image once for each case, then the LLM runs
them as one batch.

What is shared is exact because vision rows of pre-fusion see nothing but vision: dropping them
changes only who reads them, so they run once an image (`images.py`) and each case costs its
compressed tokens and words. Where they skip layers (`freeze`) they are others in each case, and the
image is read again.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from probe.hooks.layer_arguments import cache_argument
from probe.hooks.model_structure import max_positions
from probe.interventions.sweep.case_batch import until_end
from probe.interventions.sweep.layer_sets import ALWAYS, ANOTHER_IMAGE
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.interventions.sweep.sequential import Outcome, SequentialCases
from probe.subject.encoded_images import Images
from probe.subject.image_prefix import EmbeddedPrompt
from probe.subject.inputs import with_response


@dataclass(frozen=True)
class Fused:
    """`alone` knows the cases and what is done in each."""

    alone: SequentialCases
    images: Images

    def __call__(self, question: SamplePrompts, names: Sequence[str]) -> Outcome:
        """These cases. Another image is one of the rows where its tokens stand in the same places,
        else alone.
        """
        inside = [name for name in names if question.other_fits or name != ANOTHER_IMAGE]
        logits, answers = self._batch(question, inside)
        row_layers = len(self.alone.stack.layers) * len(names)
        if len(inside) == len(names):
            return Outcome(logits, answers, row_layers)
        apart, place = self.alone(question, [ANOTHER_IMAGE]), names.index(ANOTHER_IMAGE)
        logits = torch.cat([logits[:place], apart.logits, logits[place:]])
        return Outcome(logits, [*answers[:place], *apart.answers, *answers[place:]], row_layers)

    def untouched(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "1 vocabulary"]:
        """Logits of a prompt's last token when nothing is done."""
        prompt = EmbeddedPrompt.of(self.alone.subject.model, self.images.read(inputs))
        hidden = self._decoder(prompt.embeddings, prompt.positions, None)
        return self.alone.subject.model.get_output_embeddings()(hidden[:, -1])  # pyright: ignore[reportOptionalCall]

    def _batch(self, question: SamplePrompts, names: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        """Logits as in `Outcome` and greedy answers, of prompts of one length."""
        model, gold = self.alone.subject.model, question.gold
        prompts = [self._prompt(question, name) for name in names]
        embeds, positions = (
            torch.cat([prompt.embeddings for prompt in prompts]),
            prompts[0].positions,
        )
        cache = DynamicCache(config=model.config.get_text_config())
        hidden = self._decoder(embeds, positions, cache)
        logits = model.get_output_embeddings()(hidden[:, -max(len(gold), 1) :])  # pyright: ignore[reportOptionalCall]
        if len(gold) > 1:
            cache.crop(1 - len(gold))  # what is said does not know the gold answer
        return logits, self._decoded(
            logits[:, 0], cache, positions[..., question.length - 1 : question.length]
        )

    def _prompt(self, question: SamplePrompts, name: str) -> EmbeddedPrompt:
        """What the LLM gets in a case: the prompt, and the gold answer but its last token."""
        inputs = question.other if name == ANOTHER_IMAGE else question.inputs
        assert inputs is not None  # else the case would not be among the names
        asked = with_response(inputs, question.gold[:-1]) if len(question.gold) > 1 else inputs
        given = (
            asked
            if self.alone.mode == "mask_frozen" and name not in ALWAYS
            else self.images.read(asked)
        )
        with self.alone.intervention(name, question):
            return EmbeddedPrompt.of(self.alone.subject.model, given)

    def _decoder(self, embeds: Tensor, positions: Tensor, cache: DynamicCache | None) -> Tensor:
        decoder: Any = self.alone.subject.model.get_decoder()
        return decoder(
            inputs_embeds=embeds,
            position_ids=positions,
            use_cache=cache is not None,
            **cache_argument(decoder, cache),
        ).last_hidden_state

    def _decoded(
        self, logits: Tensor, cache: DynamicCache, positions: Int[Tensor, "... 1"]
    ) -> list[Tensor]:
        """Greedy answers, each up to and with the token that ends it."""
        model, end_ids = self.alone.subject.model, self.alone.subject.vocabulary.end_ids
        chosen, ends = [logits.argmax(-1)], torch.tensor(end_ids, device=logits.device)
        room = (max_positions(model) or sys.maxsize) - cache.get_seq_length()
        done = torch.isin(chosen[0], ends)
        while len(chosen) < min(self.alone.max_new_tokens, room) and not done.all():
            positions = positions + 1
            hidden = self._decoder(
                model.get_input_embeddings()(chosen[-1][:, None]), positions, cache
            )
            chosen.append(model.get_output_embeddings()(hidden[:, -1]).argmax(-1))  # pyright: ignore[reportOptionalCall]
            done |= torch.isin(chosen[-1], ends)
        return [until_end(ids, end_ids) for ids in torch.stack(chosen, 1).cpu()]
