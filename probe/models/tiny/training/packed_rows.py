"""Many questions about one image in one row, each exactly as if it were asked alone.

All questions share the prompt up to the image, so it is computed once:

    <s> A chat between ... USER: <image> | question ASSISTANT: answer </s> | question ASSISTANT: ...
    `-------------- prefix ------------´   `------- conversation 1 ------´   `--- conversation 2 ---

A conversation sees the prefix and itself (a block-diagonal mask), and its positions continue from
the prefix. In LLaVA-Mini (`fused_logits`) the image is one vision token instead of 36, and
pre-fusion packs the questions too, without their answers, which it never sees:

    vision | compressed | <s> A chat ... USER: | question ASSISTANT: | question ASSISTANT: | ...
    `-------------- seen by all -------------´   `- conversation 1 -´  `- conversation 2 -´

With fusion in the LLM all of a row follows its patches through the first layers.

Training and evaluation run on packed rows; `tests/models/tiny/training/test_packed_rows.py` checks
that they equal plain ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlavaForConditionalGeneration, ProcessorMixin

from probe.models.llava_mini import LlavaMiniForConditionalGeneration
from probe.models.llava_mini.placeholder_layout import Words, pack
from probe.models.tiny.processor import PATCH
from probe.models.tiny.questions import SceneQuestion
from probe.models.tiny.scenes import SIZE
from probe.models.tiny.training.architecture import patch_features

Turns = Sequence[SceneQuestion]  # of one conversation: questions asked one after the other


@dataclass(frozen=True)
class Packed:
    """Packed rows. Labels are -100 except where an answer token or `</s>` is predicted."""

    input_ids: Int[Tensor, "row token"]
    position_ids: Int[Tensor, "row token"]
    attention_mask: Bool[Tensor, "row 1 query key"]
    labels: Int[Tensor, "row token"]  # of the NEXT token
    turn: Int[Tensor, "row token"]  # which of `questions` the label answers; -1 for none
    questions: tuple[SceneQuestion, ...]


class Packer:
    """Tokenises questions and packs them. Stores the tokenised prefix, so make it once.

    vision_tokens: of an image, in the language model; a LLaVA-Mini has fewer.
    """

    def __init__(self, processor: ProcessorMixin, vision_tokens: int = (SIZE // PATCH) ** 2):
        tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        self._encode = tokenizer.backend_tokenizer.encode
        self._end = tokenizer.eos_token_id
        message: Any = {"role": "user", "content": [{"type": "image"}]}
        prompt: Any = processor.apply_chat_template([message])
        self.prefix = self._ids(
            prompt.replace("<image>", "<image>" * vision_tokens), add_special_tokens=True
        )

    def pack(self, images: Sequence[Sequence[Turns]]) -> Packed:
        """One row an image, each with its conversations. Rows are padded on the right."""
        questions: list[SceneQuestion] = []
        rows = [self._row(conversations, questions) for conversations in images]
        length = max(len(row[0]) for row in rows)

        def padded(part: int, filler: int) -> Tensor:
            lists = [row[part] for row in rows]
            return torch.tensor([entries + [filler] * (length - len(entries)) for entries in lists])

        ids = padded(0, 0)
        positions = padded(1, 0)
        labels = padded(2, -100)
        turn = padded(3, -1)
        block = padded(4, -1)
        return Packed(ids, positions, _block_mask(block), labels, turn, tuple(questions))

    def _row(
        self, conversations: Sequence[Turns], questions: list[SceneQuestion]
    ) -> tuple[list[int], ...]:
        start = len(self.prefix)
        ids = list(self.prefix)
        positions = list(range(start))
        labels = [-100] * start
        turn = [-1] * start
        block = [0] * start
        for number, conversation in enumerate(conversations, 1):
            before = len(ids)
            for question in conversation:
                opening = "" if len(ids) == before else "USER: "
                prompt = self._ids(f"{opening}{question.question} ASSISTANT:")
                answer = [*self._ids(question.answer), self._end]
                ids += prompt + answer
                unlearned = len(prompt) - 1  # the prompt's last token predicts the answer's first
                labels += [-100] * unlearned + answer + [-100]
                turn += [-1] * unlearned + [len(questions)] * len(answer) + [-1]
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
    """Logits at the positions of `packed.labels` that are not -100, in order."""
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


def fused_logits(
    model: LlavaMiniForConditionalGeneration,
    pixels: Float[Tensor, "row 3 height width"],
    packed: Packed,
) -> Float[Tensor, "label word"]:
    """`answer_logits` of a LLaVA-Mini."""
    inner: Any = model.model
    placeholder = packed.input_ids == model.config.image_token_id
    embedded = inner.get_input_embeddings()(packed.input_ids.masked_fill(placeholder, 0))
    vision, tokens = inner.look(pixels[:, None])
    if model.config.fusion == "in_llm":
        hidden = _fused_in_llm(inner, vision, embedded, placeholder, packed)
        return model.lm_head(hidden[packed.labels >= 0])
    words = pack(_seen_by_prefusion(packed, placeholder))
    if inner.prefusion.layers:
        raw = words.take(embedded)
        along = tokens[:, : inner.tokens_along]
        seen, fused_tokens, fused = _fuse(
            inner.prefusion, vision, along, raw, _word_mask(packed, words)
        )
        if model.config.compression == "none":
            tokens = seen
        elif inner.tokens_along:
            tokens = fused_tokens
        embedded = words.put(embedded, torch.where(words.valid[..., None], fused, raw))
    hidden = inner.language_model(
        inputs_embeds=embedded.masked_scatter(placeholder[..., None], tokens),
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[packed.labels >= 0])


def _fused_in_llm(
    inner: Any,
    vision: Float[Tensor, "row patch dim"],
    words: Float[Tensor, "row token dim"],
    placeholder: Bool[Tensor, "row token"],
    packed: Packed,
) -> Float[Tensor, "row token dim"]:
    """The LLM's last hidden states. Its first layers see patches and no placeholder, the others
    compressed tokens.
    """
    llm = inner.language_model
    first = inner.config.num_prefusion_layers
    rows, patches = vision.shape[:2]
    hidden = torch.cat([vision, words], 1)
    length = hidden.shape[1]
    visible = torch.ones(rows, length, length, dtype=torch.bool).tril()
    of_words = packed.attention_mask[:, 0] & ~placeholder[:, None]
    visible[:, patches:, patches:] = of_words
    turned = llm.rotary_emb(hidden, position_ids=visible.sum(-1) - 1)
    for layer in llm.layers[:first]:
        hidden = layer(hidden, attention_mask=visible[:, None], position_embeddings=turned)
    tokens = inner.compress(hidden[:, :patches])
    words = hidden[:, patches:].masked_scatter(placeholder[..., None], tokens)
    turned = llm.rotary_emb(words, position_ids=packed.position_ids)
    for layer in llm.layers[first:]:
        words = layer(words, attention_mask=packed.attention_mask, position_embeddings=turned)
    return llm.norm(words)


def _seen_by_prefusion(
    packed: Packed, placeholder: Bool[Tensor, "row token"]
) -> Bool[Tensor, "row token"]:
    """Words that pre-fusion sees: no image, padding or answer."""
    # A label is the next token, so an answer's tokens are one position after their labels.
    answer = torch.nn.functional.pad(packed.labels[:, :-1] >= 0, (1, 0))
    return (packed.input_ids > 0) & ~placeholder & ~answer


def _word_mask(packed: Packed, words: Words) -> Bool[Tensor, "row word key"]:
    """Which word sees which: the LLM's mask at the packed words."""
    row = torch.arange(len(words.index))[:, None, None]
    query = words.index[:, :, None]
    key = words.index[:, None, :]
    seen = packed.attention_mask[:, 0][row, query, key]
    return seen & words.valid[:, None, :]


def _fuse(
    prefusion: Any,
    vision: Float[Tensor, "row patch dim"],
    tokens: Float[Tensor, "row token dim"],
    words: Float[Tensor, "row word dim"],
    sees: Bool[Tensor, "row word key"],
) -> tuple[
    Float[Tensor, "row patch dim"], Float[Tensor, "row token dim"], Float[Tensor, "row word dim"]
]:
    """Patches, tokens and words after pre-fusion. Positions are those of each question asked alone:
    the number of positions that a word sees before itself.
    """
    patches = vision.shape[1]
    front = patches + tokens.shape[1]
    hidden = torch.cat([vision, tokens, words], 1)
    length = hidden.shape[1]
    mask = torch.ones(len(hidden), length, length, dtype=torch.bool).tril()
    mask[:, front:, front:] = sees
    position = mask.sum(-1) - 1
    turned = prefusion.rotary_emb(hidden, position_ids=position)
    for layer in prefusion.layers:
        hidden = layer(hidden, attention_mask=mask[:, None], position_embeddings=turned)
    return hidden[:, :patches], hidden[:, patches:front], hidden[:, front:]


def _block_mask(block: Int[Tensor, "row token"]) -> Bool[Tensor, "row 1 query key"]:
    """Causal, within a token's own block and the prefix (block 0). Padding (block -1) sees only
    padding.
    """
    query = block.unsqueeze(-1)
    key = block.unsqueeze(-2)
    causal = torch.ones(block.shape[1], block.shape[1], dtype=torch.bool).tril()
    return (causal & ((query == key) | ((key == 0) & (query > 0)))).unsqueeze(1)
