"""LLaVA-Mini on packed rows: each question fused and answered exactly as if it were asked alone.

The image and the prompt's first words are the same for all questions about it, so pre-fusion
computes them once:

    vision | compressed | <s> A chat between ... USER: | question ASSISTANT: | question ASSISTANT: | ...
    `------------------ seen by all ----------------´   `- conversation 1 -´  `- conversation 2 -´

Answers are left out: pre-fusion never sees them. The LLM's row is that of `packing`, with one
vision token for 36.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.models.llava_mini import LlavaMiniForConditionalGeneration
from probe.models.llava_mini.placeholder_layout import Words, pack
from probe.models.tiny.training.packed_rows import Packed


def fused_logits(
    model: LlavaMiniForConditionalGeneration,
    pixels: Float[Tensor, "row 3 height width"],
    packed: Packed,
) -> Float[Tensor, "label word"]:
    """Logits where a label is: the rows of `packed.labels` that are not -100, in order."""
    inner: Any = model.model
    placeholder = packed.input_ids == model.config.image_token_id
    embedded = inner.get_input_embeddings()(packed.input_ids.masked_fill(placeholder, 0))
    vision, tokens = inner.look(pixels[:, None])
    words = pack(_read(packed, placeholder))
    if inner.prefusion.layers:
        raw = words.take(embedded)
        tokens, fused = _fuse(inner.prefusion, vision, tokens, raw, _sees(packed, words))
        embedded = words.put(embedded, torch.where(words.valid[..., None], fused, raw))
    hidden = inner.language_model(
        inputs_embeds=embedded.masked_scatter(placeholder[..., None], tokens),
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[packed.labels >= 0])


def _read(packed: Packed, placeholder: Bool[Tensor, "row token"]) -> Bool[Tensor, "row token"]:
    """Words that pre-fusion sees: no image, no padding, and no answer, whose tokens are the labels
    one place on.
    """
    answer = torch.nn.functional.pad(packed.labels[:, :-1] >= 0, (1, 0))
    return (packed.input_ids > 0) & ~placeholder & ~answer


def _sees(packed: Packed, words: Words) -> Bool[Tensor, "row word key"]:
    """Which word sees which: as in the LLM."""
    row = torch.arange(len(words.index))[:, None, None]
    seen = packed.attention_mask[:, 0][row, words.index[:, :, None], words.index[:, None, :]]
    return seen & words.valid[:, None, :]


def _fuse(
    prefusion: Any,
    vision: Float[Tensor, "row patch dim"],
    tokens: Float[Tensor, "row token dim"],
    words: Float[Tensor, "row word dim"],
    sees: Bool[Tensor, "row word key"],
) -> tuple[Float[Tensor, "row token dim"], Float[Tensor, "row word dim"]]:
    """Tokens and words after pre-fusion. A position counts what is seen from it, as in a row of its
    own.
    """
    patches, front = vision.shape[1], vision.shape[1] + tokens.shape[1]
    hidden = torch.cat([vision, tokens, words], 1)
    length = hidden.shape[1]
    mask = torch.ones(len(hidden), length, length, dtype=torch.bool).tril()
    mask[:, front:, front:] = sees
    position = mask.sum(-1) - 1
    turned = prefusion.rotary_emb(hidden, position_ids=position)
    for layer in prefusion.layers:
        hidden = layer(hidden, attention_mask=mask[:, None], position_embeddings=turned)
    return hidden[:, patches:front], hidden[:, front:]
