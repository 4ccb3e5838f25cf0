"""Rules about the words of a prompt (a repetition penalty), for prompts that are padded to one
length: each row is judged by its own words, as it is alone. The rules of transformers count padding
as a word that was said, all of it or what does not stand on the left.

    options, processors = padded_rules(model, inputs, {"repetition_penalty": 1.05})
    model.generate(**inputs, **options, logits_processor=processors)
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    MinLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)

from probe.data.token_types import PADDING
from probe.subject.inputs import Inputs

OFF = {  # the value with which a rule changes nothing, by the name of its option
    "encoder_repetition_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
}


def padded_rules(
    model: PreTrainedModel, inputs: Inputs, generate: Mapping[str, Any]
) -> tuple[dict[str, Any], list[LogitsProcessor]]:
    """Options of `model.generate` that switch these rules off, and the same rules row by row; none
    where no row is padded. `generate`: the options for the answer, which come before the
    checkpoint's own.
    """
    ids = inputs["input_ids"]
    is_word = torch.as_tensor(inputs.types.role != PADDING, device=ids.device)
    own = {name: getattr(model.generation_config, name, None) for name in OFF}
    given = own | {name: generate[name] for name in OFF if name in generate}
    values = {name: value for name, value in given.items() if value not in (None, OFF[name])}
    if not values or bool(is_word.all()):
        return {}, []
    ends = generate.get("eos_token_id", model.generation_config.eos_token_id)
    if ends is None:
        values.pop("min_length", None)  # there is nothing that it would forbid
    rows = []
    for row, kept in zip(ids, is_word, strict=True):
        prompt = row[kept][None]
        rows.append([_rule(name, value, prompt, ends) for name, value in values.items()])
    return {name: OFF[name] for name in values}, [_RowByRow(is_word, rows)]


def _rule(name: str, value: Any, prompt: Any, ends: Any) -> LogitsProcessor:
    """The rule of transformers for a prompt (1, token)."""
    if name == "encoder_repetition_penalty":
        return EncoderRepetitionPenaltyLogitsProcessor(value, prompt)
    if name == "repetition_penalty":
        return RepetitionPenaltyLogitsProcessor(value)
    if name == "no_repeat_ngram_size":
        return NoRepeatNGramLogitsProcessor(value)
    if name == "encoder_no_repeat_ngram_size":
        return EncoderNoRepeatNGramLogitsProcessor(value, prompt)
    return MinLengthLogitsProcessor(value, ends, str(prompt.device))


class _RowByRow(LogitsProcessor):
    """Rules of each row, which are shown its words without padding; its beams share them."""

    def __init__(self, is_word: Bool[Tensor, "row position"], rules: list[list[LogitsProcessor]]):
        self.is_word, self.rules = is_word, rules
        self.has_prompt: bool | None = None  # among the ids; known from the first call on

    def __call__(
        self, input_ids: Int[Tensor, "beam token"], scores: Float[Tensor, "beam word"]
    ) -> Float[Tensor, "beam word"]:
        beams = len(scores) // len(self.rules)
        prompt_length = self.is_word.shape[1]
        if self.has_prompt is None:  # some models give the LLM embeddings of it, and no ids
            self.has_prompt = input_ids.shape[1] >= prompt_length
        made = []
        for number, ids in enumerate(input_ids):
            row = number // beams
            words: Any = ids[None]
            if self.has_prompt:
                prompt = ids[:prompt_length][self.is_word[row]]
                words = torch.cat([prompt, ids[prompt_length:]])[None]
            of_beam: Any = scores[number : number + 1]
            for rule in self.rules[row]:
                of_beam = rule(words, of_beam)
            made.append(of_beam)
        return torch.cat(made)
