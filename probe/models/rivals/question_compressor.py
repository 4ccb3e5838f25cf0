"""LLaMA-VID's compressor: of each frame one token, for which a question has looked at it.

    queries   = Q-Former(learned queries + the question's BERT tokens, cross-attending to LN(frame))
    A         = softmax(W queries . key(v)^T / sqrt(width))      one head; v: the frame's patches
    context   = value(mean over queries of A v)                  one token

The Q-Former is InstructBLIP's.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import InstructBlipQFormerModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward


class ContextAttention(nn.Module):
    """One head, through transformers' attention interface."""

    is_causal = False

    def __init__(self, config: Any, dim: int, query_dim: int):
        super().__init__()
        self.config: Any = config
        self.num_heads = 1
        self.head_dim = dim
        self.scaling = dim**-0.5
        self.query = nn.Linear(query_dim, dim)
        self.key = nn.Linear(dim, dim)

    def forward(
        self,
        queries: Float[Tensor, "frame query query_dim"],
        v: Float[Tensor, "frame token dim"],
        hidden: int,
    ) -> Float[Tensor, "frame query dim"]:
        """What each query attends to; the first `hidden` tokens of a frame are not seen."""
        mask = v.new_zeros(1, 1, queries.shape[1], v.shape[1])
        mask[..., :hidden] = torch.finfo(v.dtype).min
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        query = self.query(queries)[:, None]
        key = self.key(v)[:, None]
        value = v[:, None]
        attended, _ = attend(self, query, key, value, mask, scaling=self.scaling, dropout=0.0)
        return attended.flatten(2)


class ContextToken(nn.Module):
    """The queries of a frame -> its context token. `crossattention`: an attention to other tokens
    than the queries, by which name it is found as in a Q-Former.
    """

    def __init__(self, config: Any, dim: int, query_dim: int):
        super().__init__()
        self.crossattention = ContextAttention(config, dim, query_dim)
        self.value = nn.Linear(dim, config.text_config.hidden_size)

    def forward(
        self,
        queries: Float[Tensor, "frame query query_dim"],
        v: Float[Tensor, "frame token dim"],
        hidden: int,
    ) -> Float[Tensor, "frame 1 width"]:
        attended = self.crossattention(queries, v, hidden)
        return self.value(attended.mean(1, keepdim=True))


class QuestionCompressor(nn.Module):
    """Frames and questions -> one context token for each."""

    def __init__(self, config: Any):
        super().__init__()
        dim = config.vision_config.hidden_size
        bert = config.qformer_config.hidden_size
        self.query = nn.Parameter(torch.zeros(1, config.num_query, bert))
        self.project = nn.Linear(dim, config.qformer_width)
        if dim == config.qformer_width:
            self.project = nn.Identity()
        self.norm = nn.LayerNorm(config.qformer_width, eps=1e-5)
        self.qformer: Any = InstructBlipQFormerModel._from_config(config.qformer_config)
        self.context = ContextToken(config, dim, bert)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The Q-Former's layers, and the attention from which the context token comes."""
        return (*self.qformer.encoder.layer, self.context)

    def forward(
        self,
        frames: Float[Tensor, "frame token dim"],
        query_ids: Int[Tensor, "frame word"],
        query_mask: Int[Tensor, "frame word"],
        hidden: int,
    ) -> Float[Tensor, "frame 1 width"]:
        """`hidden`: how many tokens at the start of a frame only the Q-Former sees."""
        queries = self.query.expand(len(frames), -1, -1)
        states = self.qformer(
            input_ids=query_ids,
            attention_mask=self.mask(queries, query_mask),
            query_embeds=queries,
            encoder_hidden_states=self.norm(self.project(frames)),
        ).last_hidden_state
        return self.context(states[:, : queries.shape[1]], frames, hidden)

    @staticmethod
    def mask(
        queries: Float[Tensor, "frame query bert"], query_mask: Int[Tensor, "frame word"]
    ) -> Float[Tensor, "frame 1 token token"]:
        """Queries and words see each other; padding is not seen."""
        frames, query_count = queries.shape[:2]
        of_queries = query_mask.new_ones(frames, query_count)
        is_padding = torch.cat([of_queries, query_mask], 1) == 0
        hidden = torch.finfo(queries.dtype).min
        added = queries.new_zeros(is_padding.shape).masked_fill(is_padding, hidden)
        tokens = is_padding.shape[1]
        return added[:, None, None].expand(-1, -1, tokens, -1)
