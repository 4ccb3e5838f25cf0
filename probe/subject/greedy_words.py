"""Which word comes next in a greedy answer: as `model.generate` has it, for code that decodes by
itself.

    words = GreedyWords.of(model, inputs["input_ids"])
    ids = words.likeliest(logits, answered)
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, RepetitionPenaltyLogitsProcessor

from probe.hooks.model_structure import placeholder_ids

# A checkpoint's own sampling options would only make transformers warn that they are not used
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}

# Of a checkpoint's generation config: what changes which words a greedy answer has, beside the
# repetition penalty and the words that are never said; and the value that changes nothing
OTHER_RULES = {
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    "stop_strings": None,
    "max_time": None,
}


def never_said(model: PreTrainedModel) -> list[int]:
    """The ids that no answer has: the image token and Ovis2's visual indicators, which would stand
    for (parts of) an image when the answer is encoded; VoCo tokens, which would hide the prompt;
    and what the checkpoint itself suppresses.
    """
    config, own = model.config, model.generation_config
    indicators = getattr(config, "visual_indicator_token_ids", None) or ()
    never = {*placeholder_ids(model), *indicators, getattr(config, "voco_token_id", None)}
    return sorted({*never, *(getattr(own, "suppress_tokens", None) or ())} - {None})


def other_rules(model: PreTrainedModel) -> str:
    """The rules of a checkpoint by which `GreedyWords` does not choose, "" where it has none."""
    own = model.generation_config
    given = {name: getattr(own, name, None) for name in OTHER_RULES}
    return ", ".join(
        name for name, value in given.items() if value not in (None, [], OTHER_RULES[name])
    )


@dataclass(frozen=True)
class GreedyWords:
    """The choice of the next word after one prompt. `penalty`: on words that prompt or answer
    have.
    """

    prompt: Int[Tensor, "1 token"]
    never: Int[Tensor, " word"]
    penalty: RepetitionPenaltyLogitsProcessor | None

    @classmethod
    def of(cls, model: PreTrainedModel, prompt: Int[Tensor, "1 token"]) -> "GreedyWords":
        strength = getattr(model.generation_config, "repetition_penalty", None) or 1.0
        never = torch.tensor(never_said(model), dtype=torch.long)
        processor = None if strength == 1.0 else RepetitionPenaltyLogitsProcessor(float(strength))
        return cls(prompt, never, processor)

    def likeliest(
        self, logits: Float[Tensor, "row vocabulary"], answered: Int[Tensor, "row step"]
    ) -> Int[Tensor, " row"]:
        """The next word of each row, after the words that it has answered so far."""
        scores = logits
        if self.penalty is not None:
            prompt = self.prompt.to(logits.device).expand(len(logits), -1)
            said: Any = torch.cat([prompt, answered], dim=1)
            scores = self.penalty(said, logits.float())
        ids = torch.arange(logits.shape[-1], device=logits.device)
        is_refused = torch.isin(ids, self.never.to(logits.device))
        return scores.masked_fill(is_refused, float("-inf")).argmax(-1)
