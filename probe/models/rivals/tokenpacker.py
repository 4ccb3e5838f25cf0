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
from collections.abc import Mapping
from typing import Any, no_type_check

import torch
from einops import rearrange
from huggingface_hub.dataclasses import strict
from jaxtyping import Float
from torch import Tensor, nn

from probe.models.llava_mini.compressor import CompressorAttention
from probe.models.rivals.base import (
    Pixels,
    RivalConfig,
    RivalForConditionalGeneration,
    RivalModel,
)
from probe.models.rivals.original_format import build, native_fields

KEY_STATES = (12, 16, 22, 23)  # hidden states of CLIP-L that keys and values are made of
HEAD_DIM = 128
EPS = 1e-6  # of the authors' norms
SIDE = 336  # pixels of a tile
ASPECT_WEIGHT, ASPECT_SCALE, ASPECT_EPS = 0.1, 1.4, 1e-5  # of `tiles`


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


class RegionCompressor(nn.Module):
    """Patches -> one token of the same width for each region."""

    def __init__(self, config: TokenPackerConfig):
        super().__init__()
        dim, width = config.vision_config.hidden_size, config.text_config.hidden_size
        self.scale = config.scale_factor
        heads = config.region_attention_heads or max(dim // HEAD_DIM, 1)
        deep = dim * len(KEY_STATES)
        self.q_proj_1 = nn.Linear(dim, dim, bias=False)
        self.k_proj_1 = nn.Sequential(nn.Linear(deep, dim), nn.GELU(), nn.Linear(dim, dim))
        self.v_proj_1 = nn.Sequential(nn.Linear(deep, dim), nn.GELU(), nn.Linear(dim, dim))
        self.ln_q_1, self.ln_k_1, self.ln_v_1 = (nn.LayerNorm(dim, eps=EPS) for _ in range(3))
        self.attention = CompressorAttention(config, dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))

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


class TokenPackerModel(RivalModel):
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


def tiles(height: int, width: int, max_tiles: int = 9) -> tuple[int, int]:
    """The rows and columns of tiles that an image of `height` x `width` pixels is cut into.

    The score of a grid is the share of its area that the image fills when it is made to fit, plus a
    tenth of the overlap (IoU) with the image enlarged 1.4 times. The first of equal scores wins.

    >>> tiles(336, 336), tiles(336, 1000), tiles(1200, 800)
    ((1, 1), (1, 3), (3, 2))
    """
    return max(_grids(max_tiles), key=lambda grid: _score(grid, height, width))


def _grids(max_tiles: int) -> list[tuple[int, int]]:
    """Every grid of at most so many tiles, where a single row or column has at most 9.

    >>> [len(_grids(count)) for count in (9, 16, 25)]
    [23, 36, 55]
    """
    sides = range(1, max_tiles + 1)
    return [
        (rows, columns)
        for rows in sides
        for columns in sides
        if rows * columns <= max_tiles and (min(rows, columns) > 1 or max(rows, columns) <= 9)
    ]


def _score(grid: tuple[int, int], height: int, width: int) -> float:
    box_height, box_width = SIDE * grid[0], SIDE * grid[1]
    ratio = min(box_height / height, box_width / width)
    area = box_height * box_width
    filled = round(height * ratio) * round(width * ratio) / area
    tall, wide = height * ASPECT_SCALE, width * ASPECT_SCALE
    overlap = min(box_height, tall) * min(box_width, wide)
    union = area + tall * wide - overlap
    return filled + ASPECT_WEIGHT * overlap / (union + ASPECT_EPS)


RENAMES = {
    r"^model\.mm_projector\.clip_attn\.": "model.compressor.attention.",
    r"^model\.mm_projector\.": "model.compressor.",
}


def from_original(
    state_dict: Mapping[str, Tensor], config: dict[str, Any], vision_config: dict[str, Any]
) -> TokenPackerForConditionalGeneration:
    """The authors' model, in eval mode. Raises CheckpointError for missing or surplus tensors."""
    native = TokenPackerConfig(
        **native_fields(config, vision_config),
        scale_factor=config.get("scale_factor", 2),
        region_attention_heads=config.get("region_attention_heads"),
    )
    return build(TokenPackerForConditionalGeneration, native, state_dict, RENAMES)
