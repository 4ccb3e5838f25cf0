"""Many questions about one image in one row, each exactly as if it were asked alone.

The prompt up to the image is the same for all of them, so it is computed once:

    <s> A chat between ... USER: <image> | question ASSISTANT: answer </s> | question ASSISTANT: ...
    `-------------- prefix ------------´   `------- conversation 1 ------´   `--- conversation 2 ---

A conversation sees the prefix and itself (a block-diagonal mask), and its positions go on from the
prefix. Training and evaluation run on packed rows; `tests/test_tiny_packing.py` holds them equal to
plain ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlavaForConditionalGeneration, ProcessorMixin

from probe.models.tiny.processor import PATCH
from probe.models.tiny.questions import Question
from probe.models.tiny.scenes import SIZE
from probe.models.tiny.training.architecture import patch_features

Conversation = Sequence[Question]  # questions about one image, asked one after the other


@dataclass(frozen=True)
class Packed:
    """A batch of packed rows. Labels are -100 wherever no answer token (or closing `</s>`) is
    predicted.
    """

    input_ids: Int[Tensor, "row token"]
    position_ids: Int[Tensor, "row token"]
    attention_mask: Bool[Tensor, "row 1 query key"]
    labels: Int[Tensor, "row token"]  # of the NEXT token
    turn: Int[Tensor, "row token"]  # which of `questions` the label answers; -1 for none
    questions: tuple[Question, ...]


class Packer:
    """Tokenises questions and packs them. Holds the prefix, so it is made once.

    vision_tokens: what an image is for the language model; a LLaVA-Mini has fewer.
    """

    def __init__(self, processor: ProcessorMixin, vision_tokens: int = (SIZE // PATCH) ** 2):
        tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        self._encode, self._end = tokenizer.backend_tokenizer.encode, tokenizer.eos_token_id
        message: Any = {"role": "user", "content": [{"type": "image"}]}
        prompt: Any = processor.apply_chat_template([message])
        self.prefix = self._ids(
            prompt.replace("<image>", "<image>" * vision_tokens), add_special_tokens=True
        )

    def pack(self, images: Sequence[Sequence[Conversation]]) -> Packed:
        """One row an image, each with its conversations. Rows are padded on the right."""
        questions: list[Question] = []
        rows = [self._row(conversations, questions) for conversations in images]
        length = max(len(row[0]) for row in rows)
        ids, positions, labels, turn, block = (
            torch.tensor([row[i] + [fill] * (length - len(row[i])) for row in rows])
            for i, fill in enumerate((0, 0, -100, -1, -1))
        )
        return Packed(ids, positions, _mask(block), labels, turn, tuple(questions))

    def _row(
        self, conversations: Sequence[Conversation], questions: list[Question]
    ) -> tuple[list[int], ...]:
        start = len(self.prefix)
        ids, positions = list(self.prefix), list(range(start))
        labels, turn, block = [-100] * start, [-1] * start, [0] * start
        for number, conversation in enumerate(conversations, 1):
            before = len(ids)
            for question in conversation:
                opening = "" if len(ids) == before else "USER: "
                prompt = self._ids(f"{opening}{question.question} ASSISTANT:")
                answer = [*self._ids(question.answer), self._end]
                ids += prompt + answer
                labels += [-100] * (len(prompt) - 1) + answer + [-100]
                turn += [-1] * (len(prompt) - 1) + [len(questions)] * len(answer) + [-1]
                questions.append(question)
            positions += range(start, start + len(ids) - before)
            block += [number] * (len(ids) - before)
        return ids, positions, labels, turn, block

    def _ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self._encode(text, add_special_tokens=add_special_tokens).ids


def answer_logits(
    model: LlavaForConditionalGeneration,
    pixels: Float[Tensor, "row 3 height width"],
    packed: Packed,
) -> Float[Tensor, "label word"]:
    """Logits where a label is: the rows of `packed.labels` that are not -100, in order."""
    features = patch_features(model, pixels)
    embedded = model.get_input_embeddings()(packed.input_ids)
    places = (packed.input_ids == model.config.image_token_id).unsqueeze(-1)
    hidden = model.model.language_model(
        inputs_embeds=embedded.masked_scatter(places, features.to(embedded.dtype)),
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[packed.labels >= 0])


def _mask(block: Int[Tensor, "row token"]) -> Bool[Tensor, "row 1 query key"]:
    """Causal, within the own block and the prefix (block 0). Padding (block -1) sees padding
    only.
    """
    query, key = block.unsqueeze(-1), block.unsqueeze(-2)
    causal = torch.ones(block.shape[1], block.shape[1], dtype=torch.bool).tril()
    return (causal & ((query == key) | ((key == 0) & (query > 0)))).unsqueeze(1)
