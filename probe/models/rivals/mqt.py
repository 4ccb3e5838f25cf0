"""MQT-LLaVA: the first m of 256 learned queries look at the patches, for any m from 1 to 256.

    q = LN(query[:m] + pos[:m])      k = LN(pos, resized from 16 x 16 to the grid of patches)
    v = LN(patches)                  tokens = attention(q, k, v) proj

The keys hold no image: the attention map is the same for every image, a fixed mask of the weights.
What differs between images is the values. Tokens 1 to m are the same for every larger m.

Where a call names no m, it follows from the placeholders in its prompt, and without a prompt the
config's number is taken (256 where it names a training stage: the authors' code then draws an even
m at random at every call).

Source: arXiv 2405.19315; gordonhu608/MQT-LLaVA at 92c35d0.
"""

import math
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, no_type_check

import torch
from einops import rearrange
from huggingface_hub.dataclasses import strict
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import Cache

from probe.models.llava_mini.compressor import CompressorAttention
from probe.models.original import llava_names
from probe.models.original.layout import Layout, Settings
from probe.models.original.shapes import Shapes
from probe.models.rivals.base import (
    Pixels,
    Region,
    RivalConfig,
    RivalForConditionalGeneration,
    RivalModel,
)
from probe.models.rivals.processing import rival_processor

QUERIES = 256
EPS = 1e-6  # of the authors' norms


@no_type_check
@strict
class MqtConfig(RivalConfig):
    """num_visual_tokens: m where a call names none. query_attention_heads: of the abstractor."""

    model_type = "mqt_llava"

    num_visual_tokens: int = QUERIES
    query_attention_heads: int = 16

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.image_seq_length = self.num_visual_tokens

    @property
    def most_visual_tokens(self) -> int:
        return QUERIES

    def token_regions(self, count: int) -> list[Region | None]:
        """Every query looks at all patches."""
        return [None] * count


class QueryAbstractor(nn.Module):
    """256 queries of which any first m can be used."""

    def __init__(self, config: MqtConfig):
        super().__init__()
        vision = config.vision_config
        width = config.text_config.hidden_size
        dim = vision.hidden_size
        self.query = nn.Parameter(torch.zeros(QUERIES, dim))
        self.pos_embed = nn.Parameter(torch.zeros(QUERIES, dim))  # trained: taken from the file
        self.ln_q = nn.LayerNorm(dim, eps=EPS)
        self.ln_k = nn.LayerNorm(dim, eps=EPS)
        self.ln_v = nn.LayerNorm(dim, eps=EPS)
        self.attention = CompressorAttention(config, dim, config.query_attention_heads)
        self.proj = nn.Parameter(torch.zeros(dim, width))

    def forward(
        self, patches: Float[Tensor, "image patch dim"], count: int
    ) -> Float[Tensor, "image token hidden"]:
        images, patch_count, _ = patches.shape
        chosen = self.query[:count] + self.pos_embed[:count]
        query = self.ln_q(chosen).expand(images, -1, -1)
        positions = self.positions(patch_count).to(query.dtype)
        key = self.ln_k(positions).expand(images, -1, -1)
        value = self.ln_v(patches.to(query.dtype))
        tokens, _ = self.attention(query, key, value)
        return tokens @ self.proj

    def positions(self, patches: int) -> Float[Tensor, "patch dim"]:
        """The queries' table, resized (bicubic, no antialias, in float32) to the patches."""
        side = math.isqrt(patches)
        own = math.isqrt(QUERIES)
        if side == own:
            return self.pos_embed
        table = rearrange(self.pos_embed.float(), "(row col) dim -> 1 dim row col", row=own)
        resized = nn.functional.interpolate(table, (side, side), mode="bicubic")
        return rearrange(resized, "1 dim row col -> (row col) dim")


class MqtModel(RivalModel):
    config: MqtConfig
    HOW = ("num_visual_tokens",)
    NOTE = "keys are positions only: this attention is the same for every image"

    def __init__(self, config: MqtConfig):
        super().__init__(config)
        self.compressor = QueryAbstractor(config)
        self.post_init()

    def how_of(
        self, placeholder: Bool[Tensor, "row token"], pixels: Pixels, how: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """As many tokens of each image as the prompt has placeholders, where the call names no
        number.
        """
        asked, rest = divmod(int(placeholder.sum()), len(pixels))
        if how.get("num_visual_tokens") is not None or rest or not 1 <= asked <= QUERIES:
            return how
        return {"num_visual_tokens": asked}

    def vision_tokens(
        self, pixel_values: Pixels, num_visual_tokens: int | None = None
    ) -> Float[Tensor, "image token hidden"]:
        """The first `num_visual_tokens` tokens of each image. ValueError outside 1 to 256."""
        wanted = self.config.num_visual_tokens if num_visual_tokens is None else num_visual_tokens
        if not isinstance(wanted, int) or not 1 <= wanted <= QUERIES:
            raise ValueError(
                f"MQT-LLaVA: expected num_visual_tokens of 1 to {QUERIES}, got {wanted!r}"
            )
        patches = self.patch_features(pixel_values)
        return self.compressor(patches, wanted)


class MqtForConditionalGeneration(RivalForConditionalGeneration):
    config: MqtConfig
    MODEL = MqtModel

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        num_visual_tokens: int | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs,
    ):
        """As `RivalForConditionalGeneration.forward`; num_visual_tokens: m, the config's by
        default.
        """
        return super().forward(
            input_ids,
            pixel_values,
            attention_mask,
            num_visual_tokens=num_visual_tokens,
            past_key_values=past_key_values,
            cache=cache,
            **kwargs,
        )


RENAMES = {
    r"^model\.query_abstractor\.attn\.": "model.compressor.attention.",
    r"^model\.query_abstractor\.": "model.compressor.",
}
OWN_FIELDS = ("num_visual_tokens", "query_attention_heads", "query_abstractor_type")


def _recognises(settings: Settings, names: Collection[str], folder: Path) -> bool:
    return any("query_abstractor." in name for name in names)


def _config(settings: Settings, vision_config: Settings, shapes: Shapes) -> MqtConfig:
    stored = settings.get("num_visual_tokens")
    return MqtConfig(
        **llava_names.shared_fields(settings, vision_config, OWN_FIELDS),
        num_visual_tokens=stored if isinstance(stored, int) else QUERIES,
        query_attention_heads=settings.get("query_attention_heads", 16),
    )


LAYOUT = Layout(
    "MQT-LLaVA",
    MqtForConditionalGeneration,
    _recognises,
    _config,
    partial(llava_names.renamed, own=RENAMES),
    rival_processor,
)
from_original = LAYOUT.from_original
