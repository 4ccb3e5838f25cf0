"""Modality pre-fusion: layers like the LLM's, before the LLM, in which the text reads the whole
image.

    [vision | compressed | text]  ->  N decoder layers, causal  ->  [        | compressed | text]

Only the compressed tokens and the text are used afterwards, and by causality vision rows see
neither. So vision rows are a prefix of which the rest needs only keys and values. They are computed
once per image and shared by all questions about it; the last layer computes nothing else of them.
This is exact.

Hidden words (the response, placeholders, padding) are masked as keys and take no position.

Source: arXiv 2501.03895, Eq. 3; `encode_images_mini` of the authors' `llavamini_arch.py`.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from probe.models.llava_mini.cache_argument import cache_keyword, pop_cache

VisionCache = tuple[
    tuple[Tensor, Tensor], ...
]  # keys and values of the vision rows, one pair a layer


class PrefusionLayer(LlamaDecoderLayer):
    """A decoder layer of the LLM that can stop after computing keys and values."""

    def forward(self, hidden_states, *, keys_only: bool = False, **kwargs):
        if not keys_only:
            return super().forward(hidden_states, **kwargs)
        attention = self.self_attn
        normed = self.input_layernorm(hidden_states)
        heads = (*normed.shape[:-1], -1, attention.head_dim)
        key = attention.k_proj(normed).view(heads).transpose(1, 2)
        value = attention.v_proj(normed).view(heads).transpose(1, 2)
        key, _ = apply_rotary_pos_emb(key, key, *kwargs["position_embeddings"])
        cache: Any = pop_cache(kwargs)
        cache.update(key, value, attention.layer_idx)
        return hidden_states


class LlavaMiniPrefusion(nn.Module):
    """The pre-fusion layers: the LLM's architecture without a norm after the last layer."""

    def __init__(self, config, num_layers: int):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(PrefusionLayer(config, layer_idx=i) for i in range(num_layers))
        self.rotary_emb = LlamaRotaryEmbedding(config)

    def forward(
        self,
        vision: Float[Tensor, "frame patch dim"],
        words: Float[Tensor, "frame word dim"],
        visible: Bool[Tensor, "frame word"],
    ) -> tuple[Float[Tensor, "frame patch dim"], Float[Tensor, "frame word dim"]]:
        """All rows through all layers. `see` and `fuse` give the same words with a cache, which
        gradient checkpointing does not allow.
        """
        hidden = self._run(torch.cat([vision, words], 1), visible, None)
        return hidden[:, : vision.shape[1]], hidden[:, vision.shape[1] :]

    def see(
        self, vision: Float[Tensor, "frame patch dim"], outputs: bool = False
    ) -> tuple[VisionCache, Float[Tensor, "frame patch dim"] | None]:
        """Keys and values of the vision rows in each layer and, with `outputs`, the vision rows
        after the last layer.
        """
        cache = DynamicCache()
        hidden = self._run(
            vision,
            vision.new_ones(vision.shape[:2], dtype=torch.bool),
            cache,
            last_keys_only=not outputs,
        )
        layers: Any = cache.layers
        prefix = tuple((layer.keys, layer.values) for layer in layers)
        return prefix, hidden if outputs else None  # pyright: ignore[reportReturnType]

    def fuse(
        self,
        prefix: VisionCache,
        words: Float[Tensor, "frame word dim"],
        visible: Bool[Tensor, "frame word"],
    ) -> Float[Tensor, "frame word dim"]:
        """The words (compressed tokens, then text) after reading the image of their frame."""
        cache = DynamicCache()
        for i, (key, value) in enumerate(prefix):
            cache.update(key, value, i)
        return self._run(words, visible, cache)

    def _run(self, hidden, visible, cache: DynamicCache | None, last_keys_only: bool = False):
        """Runs rows that follow those in the cache. `visible` covers the last of them; all rows
        before are vision and visible.
        """
        before = cache.get_seq_length() if cache is not None else 0
        vision = before + hidden.shape[1] - visible.shape[1]
        visible = torch.cat([visible.new_ones(len(visible), vision), visible], dim=1)
        position = (visible.long().cumsum(1) - 1)[
            :, before:
        ]  # not passed on: flash would see packed sequences in it
        options = {
            "attention_mask": create_causal_mask(
                config=self.config,
                inputs_embeds=hidden,
                attention_mask=visible.long(),
                **cache_keyword(create_causal_mask, cache),
            ),
            "position_embeddings": self.rotary_emb(hidden, position_ids=position),
            **cache_keyword(LlamaDecoderLayer.forward, cache),
        }
        for layer in self.layers:
            hidden = layer(hidden, keys_only=last_keys_only and layer is self.layers[-1], **options)
        return hidden
