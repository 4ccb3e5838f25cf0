"""TokenPacker: a coarse query for every s x s region, which looks at the region's own patches.

    x = hidden_states[-2], X = hidden_states[12 | 16 | 22 | 23] side by side, no class token
    q = LN(W x shrunk to 24/s x 24/s)      bilinear in float32, no antialias: s = 2 is the mean of
                                           the region, s = 3 its centre patch, s = 4 the mean of its
                                           central 2 x 2
    k = LN(MLP X), v = LN(MLP X)           a query attends to the s*s keys of its region only
    tokens = MLP(attention(q, k, v))       no residual: the coarse query acts through weights only

An image gives (24 / s)^2 tokens in raster order: 144, 64 or 36. A query's entropy is at most
ln(s*s).

High resolution (`image_aspect_ratio: "slice"`): `tiles` says into how many tiles an image is cut;
separators between tiles are words of the prompt.

Source: arXiv 2407.02392; CircleRadon/TokenPacker at 771a16e.
"""

import math
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, no_type_check

import torch
from einops import rearrange
from huggingface_hub.dataclasses import strict
from jaxtyping import Float
from torch import Tensor, nn

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
from probe.models.rivals.processing import (
    RivalProcessor,
    processor_options,
    square_image_processor,
)
from probe.models.rivals.tokenpacker_tiles import TokenPackerProcessor, separator_ids, tiles

KEY_STATES = (12, 16, 22, 23)  # hidden states of CLIP-L that keys and values are made of
HEAD_DIM = 128
EPS = 1e-6  # of the authors' norms


@no_type_check
@strict
class TokenPackerConfig(RivalConfig):
    """scale_factor: patches along a side of a region. region_attention_heads: None for heads of
    128.
    """

    model_type = "tokenpacker"

    scale_factor: int = 2
    region_attention_heads: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.patches_per_side % self.scale_factor:
            raise ValueError(
                f"TokenPackerConfig: expected a scale_factor that divides {self.patches_per_side} "
                f"patches, got {self.scale_factor}"
            )
        self.image_seq_length = (self.patches_per_side // self.scale_factor) ** 2

    def token_regions(self, count: int) -> list[Region | None]:
        """A query's keys are the patches of its own region."""
        size = self.scale_factor
        starts = range(0, self.patches_per_side, size)
        return [(top, left, top + size, left + size) for top in starts for left in starts]


class RegionCompressor(nn.Module):
    """Patches -> one token of the same width for each region."""

    def __init__(self, config: TokenPackerConfig):
        super().__init__()
        dim = config.vision_config.hidden_size
        width = config.text_config.hidden_size
        self.scale = config.scale_factor
        heads = config.region_attention_heads or max(dim // HEAD_DIM, 1)
        deep = dim * len(KEY_STATES)
        self.q_proj_1 = nn.Linear(dim, dim, bias=False)
        self.k_proj_1 = _two_layers(deep, dim)
        self.v_proj_1 = _two_layers(deep, dim)
        self.ln_q_1 = nn.LayerNorm(dim, eps=EPS)
        self.ln_k_1 = nn.LayerNorm(dim, eps=EPS)
        self.ln_v_1 = nn.LayerNorm(dim, eps=EPS)
        self.attention = CompressorAttention(config, dim, heads)
        self.mlp = _two_layers(dim, width)

    def forward(
        self, patches: Float[Tensor, "image patch dim"], deep: Float[Tensor, "image patch deep"]
    ) -> Float[Tensor, "image region hidden"]:
        query = self.ln_q_1(self.q_proj_1(self._coarse(patches)))
        key = self._by_region(self.ln_k_1(self.k_proj_1(deep)))
        value = self._by_region(self.ln_v_1(self.v_proj_1(deep)))
        own_query = rearrange(query, "image region dim -> (image region) 1 dim")
        tokens, _ = self.attention(own_query, key, value)
        return self.mlp(
            rearrange(tokens, "(image region) 1 dim -> image region dim", image=len(query))
        )

    def _coarse(
        self, patches: Float[Tensor, "image patch dim"]
    ) -> Float[Tensor, "image region dim"]:
        side = math.isqrt(patches.shape[1])
        grid = rearrange(patches.float(), "image (row col) dim -> image dim row col", row=side)
        small = side // self.scale
        coarse = nn.functional.interpolate(grid, (small, small), mode="bilinear")
        return rearrange(coarse, "image dim row col -> image (row col) dim").to(patches.dtype)

    def _by_region(
        self, patches: Float[Tensor, "image patch dim"]
    ) -> Float[Tensor, "region_of_image member dim"]:
        rows = math.isqrt(patches.shape[1]) // self.scale
        return rearrange(
            patches,
            "image (row inner_row col inner_col) dim -> (image row col) (inner_row inner_col) dim",
            row=rows,
            inner_row=self.scale,
            col=rows,
        )


def _two_layers(width_in: int, width_out: int) -> nn.Sequential:
    first = nn.Linear(width_in, width_out)
    return nn.Sequential(first, nn.GELU(), nn.Linear(width_out, width_out))


class TokenPackerModel(RivalModel):
    config: TokenPackerConfig
    NOTE = "a query reads the patches of its own region only"

    def __init__(self, config: TokenPackerConfig):
        super().__init__(config)
        self.compressor = RegionCompressor(config)
        self.post_init()

    def vision_tokens(self, pixel_values: Pixels) -> Float[Tensor, "image region hidden"]:
        """One token for each region of each image, in raster order.

        Raises ValueError for a tower of too few layers.
        """
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        if len(states) <= max(KEY_STATES):
            raise ValueError(
                f"TokenPacker: expected a vision tower of at least {max(KEY_STATES)} layers, got "
                f"{len(states) - 1}"
            )
        deep = torch.cat([states[index][:, 1:] for index in KEY_STATES], -1)
        return self.compressor(states[self.config.vision_feature_layer][:, 1:], deep)


class TokenPackerForConditionalGeneration(RivalForConditionalGeneration):
    config: TokenPackerConfig
    MODEL = TokenPackerModel


RENAMES = {
    r"^model\.mm_projector\.clip_attn\.": "model.compressor.attention.",
    r"^model\.mm_projector\.": "model.compressor.",
}
OWN_FIELDS = ("scale_factor", "region_attention_heads", "separator_token_ids", "patch_num")


def _recognises(settings: Settings, names: Collection[str], folder: Path) -> bool:
    return any("mm_projector.clip_attn." in name for name in names)


def _config(settings: Settings, vision_config: Settings, shapes: Shapes) -> TokenPackerConfig:
    return TokenPackerConfig(
        **llava_names.shared_fields(settings, vision_config, OWN_FIELDS),
        scale_factor=settings.get("scale_factor", 2),
        region_attention_heads=settings.get("region_attention_heads"),
    )


def _processor(
    config: TokenPackerConfig, settings: Settings, tokenizer: Any, folders: list[Path]
) -> RivalProcessor:
    options = processor_options(config, settings)
    image_processor = square_image_processor(config)
    if settings.get("image_aspect_ratio") != "slice":
        return RivalProcessor(image_processor, tokenizer, **options)
    separators = settings.get("separator_token_ids") or separator_ids(tokenizer)
    options |= {"max_tiles": settings.get("patch_num", 9), "separator_ids": separators}
    return TokenPackerProcessor(image_processor, tokenizer, **options)


LAYOUT = Layout(
    "TokenPacker",
    TokenPackerForConditionalGeneration,
    _recognises,
    _config,
    partial(llava_names.renamed, own=RENAMES),
    _processor,
)
from_original = LAYOUT.from_original
__all__ = ["TokenPackerConfig", "TokenPackerForConditionalGeneration", "from_original", "tiles"]
