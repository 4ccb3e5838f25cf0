"""Modality pre-fusion: layers like the LLM's, before the LLM, in which the text reads the whole
image.

    [vision | compressed | text]  ->  N decoder layers, causal  ->  [        | compressed | text]

Only the compressed tokens and the text are used afterwards, and vision rows see nothing that comes
after them. So they are a prefix whose keys and values are all that the rest needs: computed once
per image, shared by every question about it, and in the last layer never computed further than
that. This is exact, not an approximation.

Hidden words (the response, placeholders, padding) are seen by nobody and take no position.

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
    """A decoder layer of the LLM that can stop after the keys and values of its rows."""

    def forward(self, hidden_states, *, keys_only: bool = False, **kwargs):
        if not keys_only:
            return super().forward(hidden_states, **kwargs)
        attention, normed = self.self_attn, self.input_layernorm(hidden_states)
        heads = (*normed.shape[:-1], -1, attention.head_dim)
        key, value = (
            map_(normed).view(heads).transpose(1, 2)
            for map_ in (attention.k_proj, attention.v_proj)
        )
        key, _ = apply_rotary_pos_emb(key, key, *kwargs["position_embeddings"])
        cache: Any = pop_cache(kwargs)
        cache.update(key, value, attention.layer_idx)
        return hidden_states


class LlavaMiniPrefusion(nn.Module):
    """The pre-fusion layers. Like the LLM's in everything, but there is no norm after the last
    one.
    """

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
        """All rows through all layers: what `see` and `fuse` must equal, and what gradient
        checkpointing needs.
        """
        hidden = self._run(torch.cat([vision, words], 1), visible, None)
        return hidden[:, : vision.shape[1]], hidden[:, vision.shape[1] :]

    def see(
        self, vision: Float[Tensor, "frame patch dim"], outputs: bool = False
    ) -> tuple[VisionCache, Float[Tensor, "frame patch dim"] | None]:
        """What words need of the image, and (if asked for) the image's own rows after the last
        layer.
        """
        cache = DynamicCache()
        hidden = self._run(
            vision,
            vision.new_ones(vision.shape[:2], dtype=torch.bool),
            cache,
            last_keys_only=not outputs,
        )
        return tuple(
            (layer.keys, layer.values) for layer in cache.layers
        ), hidden if outputs else None  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]

    def fuse(
        self,
        prefix: VisionCache,
        words: Float[Tensor, "frame word dim"],
        visible: Bool[Tensor, "frame word"],
    ) -> Float[Tensor, "frame word dim"]:
        """The words (compressed tokens, then text) after they have read the image of their
        frame.
        """
        cache = DynamicCache()
        for i, (key, value) in enumerate(prefix):
            cache.update(key, value, i)
        return self._run(words, visible, cache)

    def _run(self, hidden, visible, cache: DynamicCache | None, last_keys_only: bool = False):
        """Rows behind those of the cache. `visible` is about the last of them; all before is vision
        and visible.
        """
        before = cache.get_seq_length() if cache is not None else 0
        front = before + hidden.shape[1] - visible.shape[1]
        visible = torch.cat([visible.new_ones(len(visible), front), visible], dim=1)
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
