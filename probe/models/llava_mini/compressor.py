"""Query-based compression: C x C learned queries look at the patches of an image and return C x C
tokens.

    tokens = softmax((Q + PE)(K + PE_grid)^T / sqrt(d)) V          Q: queries, K and V: patches, several heads

The position embedding of the patches is the queries' own C x C table, resized to the grid of the
patches; the values have none. With C = 1 it is one constant, to which a softmax is blind.

Source: Resampler of the authors' `llavamini/model/multimodal_projector` (arXiv 2501.03895, Eq. 2,
describes it without heads and projections; `facts/llava_mini.md` section 10 lists the differences).
"""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward


class CompressorAttention(nn.Module):
    """Multi-head cross-attention through transformers' attention interface: every kernel and every
    tap applies.
    """

    is_causal = False

    def __init__(self, config, dim: int, num_heads: int):
        super().__init__()
        self.config = config  # names the kernel
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(
        self,
        query: Float[Tensor, "frame token dim"],
        key: Float[Tensor, "frame patch dim"],
        value: Float[Tensor, "frame patch dim"],
    ) -> tuple[Float[Tensor, "frame token dim"], Tensor | None]:
        """The attended values, and the weights (frame, head, token, patch) if the kernel has
        them.
        """
        heads = "frame token (head dim) -> frame head token dim"
        query, key, value = (
            rearrange(projection(x), heads, head=self.num_heads)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0)
        return self.out_proj(attended.flatten(2)), weights


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
        # Starts as a sine-cosine table but is trained: a checkpoint's table is loaded, never
        # computed.
        self.pos_embed = nn.Parameter(torch.zeros(size * size, dim))
        self.ln_q, self.ln_kv = nn.LayerNorm(dim, eps=1e-5), nn.LayerNorm(dim, eps=1e-5)
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
        tokens, _ = self.attention(
            query, patches + self.positions(patches.shape[1]).to(patches.dtype), patches
        )
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
    """What the position table starts from: the column in the first half of the channels, the row in
    the second.

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
