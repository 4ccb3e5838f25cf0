"""Query-based compression: C x C learned queries look at the patches of an image and return C x C
tokens.

    tokens = softmax((Q + PE)(K + PE_grid)^T / sqrt(d)) V       Q: queries; K, V: patches; by head

The patches' position embedding is the queries' C x C table, resized to the grid of the patches;
values have none. With C = 1 it is constant over patches, so the softmax ignores it.

Source: Resampler of the authors' `llavamini/model/multimodal_projector` . arXiv 2501.03895, Eq. 2,
describes it without heads and projections.
"""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward


class CompressorAttention(nn.Module):
    """Multi-head cross-attention through transformers' attention interface, so that every kernel
    and every attention tap works.
    """

    is_causal = False

    def __init__(self, config, dim: int, num_heads: int):
        super().__init__()
        self.config = config  # `_attn_implementation` names the kernel
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self,
        query: Float[Tensor, "frame token dim"],
        key: Float[Tensor, "frame patch dim"],
        value: Float[Tensor, "frame patch dim"],
    ) -> tuple[Float[Tensor, "frame token dim"], Tensor | None]:
        """The attended values, and the weights (frame, head, token, patch) if the kernel returns
        them.
        """
        query = self._by_head(self.q_proj(query))
        key = self._by_head(self.k_proj(key))
        value = self._by_head(self.v_proj(value))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0)
        return self.out_proj(attended.flatten(2)), weights

    def _by_head(self, x: Tensor) -> Tensor:
        return rearrange(x, "frame token (head dim) -> frame head token dim", head=self.num_heads)


class LlavaMiniCompressor(nn.Module):
    """Patches of one square grid -> size x size tokens of the same width."""

    def __init__(self, config, dim: int, size: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"LlavaMiniConfig: expected compressor_num_heads that divide {dim}, got {num_heads}"
            )
        self.size = size
        self.query = nn.Parameter(torch.zeros(size * size, dim))
        # Initialised as a sine-cosine table, then trained: a checkpoint's table must be loaded.
        self.pos_embed = nn.Parameter(torch.zeros(size * size, dim))
        self.ln_q = nn.LayerNorm(dim, eps=1e-5)
        self.ln_kv = nn.LayerNorm(dim, eps=1e-5)
        self.attention = CompressorAttention(config, dim, num_heads)

    def forward(
        self, patches: Float[Tensor, "frame patch dim"]
    ) -> Float[Tensor, "frame token dim"]:
        patches = self.ln_kv(patches.to(self.query.dtype))
        query = repeat(
            self.ln_q(self.query) + self.pos_embed,
            "token dim -> frame token dim",
            frame=len(patches),
        )
        positions = self.positions(patches.shape[1]).to(patches.dtype)
        tokens, _ = self.attention(query, patches + positions, patches)
        return tokens

    def positions(self, patches: int) -> Float[Tensor, "patch dim"]:
        """The queries' position table, resized (bicubic, no antialias, in float32) to a square grid
        of patches.
        """
        side = math.isqrt(patches)
        if side == self.size:
            return self.pos_embed
        table = rearrange(self.pos_embed.float(), "(row col) dim -> 1 dim row col", row=self.size)
        resized = nn.functional.interpolate(
            table, (side, side), mode="bicubic", align_corners=False
        )
        return rearrange(resized, "1 dim row col -> (row col) dim")


def sincos_table(dim: int, size: int) -> Float[Tensor, "token dim"]:
    """The initial position table: the column in the first half of the channels, the row in the
    second.

    >>> sincos_table(8, 1)
    tensor([[0., 0., 1., 1., 0., 0., 1., 1.]])
    """
    place = torch.arange(size, dtype=torch.float64)
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angle = place[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    cols = repeat(wave, "col dim -> (row col) dim", row=size)
    rows = repeat(wave, "row dim -> (row col) dim", col=size)
    return torch.cat([cols, rows], dim=1).float()
