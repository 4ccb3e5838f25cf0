"""LLaMA-VID: each frame becomes a context token, in which the question asks the frame, and content
tokens, which pool its patches.

For every question about an image (or video), for each of its frames f:

    queries   = Q-Former(learned queries + the question's BERT tokens, cross-attending to LN(f))
    A         = softmax(W queries . key(v)^T / sqrt(width))      one head; v: f without class token
    context   = value(mean over queries of A v)                  one token
    content   = projector(v pooled): all patches (None), their mean ("mean"), or average pooling
                with kernel and stride side // g ("grid:g": (side // (side // g))^2 tokens, not g^2)

The frame's tokens are its context, then its content; frames follow each other. The class token is
dropped where the number of tokens is odd: a grid with an odd number of patches keeps it.

The tower is BLIP-2's EVA-ViT-g, its last block without the last norm, class token kept; or CLIP
(hidden_states[-2] without class token), then a projection stands before the Q-Former. The Q-Former
is InstructBLIP's.

Source: arXiv 2311.17043; dvlab-research/LLaMA-VID at b3d3ae2.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, no_type_check

import torch
from einops import rearrange
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from probe.models.llava_mini.generation import repeated_in_blocks
from probe.models.llava_mini.placeholder_layout import rows_of
from probe.models.rivals.base import (
    Pixels,
    RivalConfig,
    RivalForConditionalGeneration,
    RivalModel,
    TokenIds,
)
from probe.models.rivals.original_format import build, native_fields

QuestionIds = Int[Tensor, "question word"]
MLP_RATIO = 4.3637  # of EVA-ViT-g
BERT = {  # bert-base-uncased with one more word
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "vocab_size": 30523,
    "max_position_embeddings": 512,
    "cross_attention_freq": 2,
}


@no_type_check
@strict
class LlamaVidConfig(RivalConfig):
    """num_query: the Q-Former's queries. compress_type: None, "mean" or "grid:g". qformer_width:
    what the Q-Former reads of a frame; a projection stands before it where the tower is of another
    width. has_cls: the tower's class token is kept (EVA).
    """

    model_type = "llama_vid"
    sub_configs: ClassVar[dict[str, Any]] = {
        "text_config": AutoConfig,
        "vision_config": AutoConfig,
        "qformer_config": InstructBlipQFormerConfig,
    }

    qformer_config: Any = None
    num_query: int = 32
    compress_type: str | None = None
    qformer_width: int = 1408
    has_cls: bool = True

    def __post_init__(self, **kwargs):
        if self.qformer_config is None or isinstance(self.qformer_config, dict):
            self.qformer_config = InstructBlipQFormerConfig(**(self.qformer_config or {}))
        super().__post_init__(**kwargs)
        kind, _, side = (self.compress_type or "").partition(":")
        if kind not in ("", "mean", "grid") or (kind == "grid" and not side.isdigit()):
            raise ValueError(
                f'LlamaVidConfig: expected compress_type None, "mean" or "grid:2", got '
                f"{self.compress_type!r}"
            )


class ContextAttention(nn.Module):
    """One head, through transformers' attention interface."""

    is_causal = False

    def __init__(self, config: LlamaVidConfig, dim: int, query_dim: int):
        super().__init__()
        self.config: Any = config
        self.num_heads, self.head_dim = 1, dim
        self.scaling = dim**-0.5
        self.query = nn.Linear(query_dim, dim)
        self.key = nn.Linear(dim, dim)

    def forward(
        self, queries: Float[Tensor, "frame query query_dim"], v: Float[Tensor, "frame patch dim"]
    ) -> Float[Tensor, "frame query dim"]:
        """What each query attends to."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        query, key, value = self.query(queries)[:, None], self.key(v)[:, None], v[:, None]
        attended, _ = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0)
        return attended.flatten(2)


class QuestionCompressor(nn.Module):
    """Frames and questions -> one context token for each."""

    def __init__(self, config: LlamaVidConfig):
        super().__init__()
        dim, bert = config.vision_config.hidden_size, config.qformer_config.hidden_size
        self.query = nn.Parameter(torch.zeros(1, config.num_query, bert))
        self.project = nn.Linear(dim, config.qformer_width)
        if dim == config.qformer_width:
            self.project = nn.Identity()
        self.norm = nn.LayerNorm(config.qformer_width, eps=1e-5)
        self.qformer: Any = InstructBlipQFormerModel._from_config(config.qformer_config)
        self.context = ContextAttention(config, dim, bert)
        self.value = nn.Linear(dim, config.text_config.hidden_size)

    def forward(
        self,
        frames: Float[Tensor, "frame token dim"],
        patches: Float[Tensor, "frame patch dim"],
        query_ids: Int[Tensor, "frame word"],
        query_mask: Int[Tensor, "frame word"],
    ) -> Float[Tensor, "frame 1 width"]:
        queries = self.query.expand(len(frames), -1, -1)
        real = torch.ones(queries.shape[:2], dtype=query_mask.dtype, device=query_mask.device)
        states = self.qformer(
            input_ids=query_ids,
            attention_mask=torch.cat([real, query_mask], 1),
            query_embeds=queries,
            encoder_hidden_states=self.norm(self.project(frames)),
        ).last_hidden_state
        attended = self.context(states[:, : queries.shape[1]], patches)
        return self.value(attended.mean(1, keepdim=True))


class LlamaVidModel(RivalModel):
    HOW = ("query_ids", "query_mask", "query_image", "frames")

    def __init__(self, config: LlamaVidConfig):
        super().__init__(config)
        self.compressor = QuestionCompressor(config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.post_init()

    def build_tower(self, config: LlamaVidConfig) -> nn.Module:
        if not config.has_cls:
            return super().build_tower(config)
        tower: Any = InstructBlipVisionModel._from_config(config.vision_config)
        tower.post_layernorm = nn.Identity()  # the last block's output is read without it
        return tower

    def frame_features(self, pixel_values: Pixels) -> Float[Tensor, "frame token dim"]:
        if self.config.has_cls:
            return self.vision_tower(pixel_values).last_hidden_state
        return self.patch_features(pixel_values)

    def vision_tokens(
        self,
        pixel_values: Pixels,
        query_ids: QuestionIds | None = None,
        query_mask: QuestionIds | None = None,
        query_image: Int[Tensor, " question"] | None = None,
        frames: Sequence[int] | None = None,
    ) -> list[Float[Tensor, "token hidden"]]:
        """The tokens of each question: context and content of each frame of its image.

        query_ids, query_mask: BERT's ids, [CLS] ... [SEP], padded on the right.
        query_image: which image each question asks about, 0, 1, ... by default.
        frames: how many of `pixel_values` each image has, 1 by default.

        Raises ValueError where there is no question, or frames do not add up to the pixels.
        """
        if query_ids is None:
            raise ValueError("LLaMA-VID: expected query_ids, the question for each image, got none")
        counts = [1] * len(pixel_values) if frames is None else [int(count) for count in frames]
        if sum(counts) != len(pixel_values):
            raise ValueError(
                f"LLaMA-VID: expected {sum(counts)} frames, as many as `frames` says, got "
                f"{len(pixel_values)}"
            )
        mask = torch.ones_like(query_ids) if query_mask is None else query_mask
        images = range(len(query_ids)) if query_image is None else query_image.tolist()
        features = self.frame_features(pixel_values)
        patches = features[:, 1:] if features.shape[1] % 2 else features
        content = self.multi_modal_projector(self.pooled(patches))
        starts = [sum(counts[:image]) for image in range(len(counts))]
        tokens = []
        for question, image in enumerate(images):
            own = slice(starts[image], starts[image] + counts[image])
            ids, own_mask = (
                x[question].expand(counts[image], -1) for x in (query_ids, mask.long())
            )
            context = self.compressor(features[own], patches[own], ids, own_mask)
            tokens.append(torch.cat([context, content[own]], 1).flatten(0, 1))
        return tokens

    def pooled(
        self, patches: Float[Tensor, "frame patch dim"]
    ) -> Float[Tensor, "frame content dim"]:
        """What the content tokens are made of."""
        kind, _, parts = (self.config.compress_type or "").partition(":")
        if not kind:
            return patches
        if kind == "mean":
            return patches.mean(1, keepdim=True)
        side = math.isqrt(patches.shape[1])
        grid = rearrange(patches, "frame (row col) dim -> frame dim row col", row=side)
        kernel = side // int(parts)
        pooled = nn.functional.avg_pool2d(grid, kernel, kernel)
        return rearrange(pooled, "frame dim row col -> frame (row col) dim")


class LlamaVidForConditionalGeneration(RivalForConditionalGeneration):
    config: LlamaVidConfig
    MODEL = LlamaVidModel

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        query_ids=None,
        query_mask=None,
        query_image=None,
        frames=None,
        **kwargs,
    ):
        """As `RivalForConditionalGeneration.forward`, with the questions of `vision_tokens`;
        placeholders follow the questions' order.
        """
        how = {"query_ids": query_ids, "query_mask": query_mask}
        how |= {"query_image": query_image, "frames": frames}
        return super().forward(input_ids, pixel_values, attention_mask, **how, **kwargs)

    def repeated(
        self, input_ids: TokenIds, pixels: Pixels, how: dict[str, Any], copies: int
    ) -> tuple[Float[Tensor, "repeated 3 height width"], dict[str, Any]]:
        """Questions are repeated as blocks; they go on asking about the same pixels."""
        tokens = self.model.vision_tokens(pixels, **how)
        placeholder = input_ids == self.config.image_token_id
        blocks = repeated_in_blocks(rows_of(placeholder, [len(own) for own in tokens]), copies)
        asked = how.get("query_image")
        if asked is None:
            asked = torch.arange(len(tokens), device=input_ids.device)
        repeated = {"query_ids": how["query_ids"][blocks], "query_image": asked[blocks]}
        if how.get("query_mask") is not None:
            repeated["query_mask"] = how["query_mask"][blocks]
        return pixels, how | repeated


RENAMES = {
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.vlm_att_query$": "model.compressor.query",
    r"^model\.vlm_att_ln\.": "model.compressor.norm.",
    r"^model\.vlm_att_bert_proj\.": "model.compressor.project.",
    r"^model\.vlm_att_projector\.": "model.compressor.context.query.",
    r"^model\.vlm_att_key_projector\.": "model.compressor.context.key.",
    r"^model\.vlm_att_val_projector\.": "model.compressor.value.",
    r"^model\.vlm_att_encoder\.bert\.": "model.compressor.qformer.",
    r"(qformer\.embeddings\.)LayerNorm": r"\1layernorm",
    r"(qformer\..*attention\.)self\.": r"\1attention.",
    # EVA, as InstructBLIP's vision model
    r"vision_tower\.cls_token$": "vision_tower.embeddings.class_embedding",
    r"vision_tower\.pos_embed$": "vision_tower.embeddings.position_embedding",
    r"vision_tower\.patch_embed\.proj\.": "vision_tower.embeddings.patch_embedding.",
    r"vision_tower\.blocks\.": "vision_tower.encoder.layers.",
    r"(vision_tower\..*\.)norm(\d)\.": r"\1layer_norm\2.",
    r"(vision_tower\..*\.)attn\.proj\.": r"\1self_attn.projection.",
    r"(vision_tower\..*\.)attn\.qkv": r"\1self_attn.qkv",
}


def from_original(
    state_dict: Mapping[str, Tensor], config: dict[str, Any], vision_config: dict[str, Any]
) -> LlamaVidForConditionalGeneration:
    """The authors' model, in eval mode. Raises CheckpointError for missing or surplus tensors."""
    is_eva = vision_config.get("kind", "eva") == "eva"
    norm = next((x for name, x in state_dict.items() if name.endswith("vlm_att_ln.weight")), None)
    width = vision_config["hidden_size"] if norm is None else len(norm)
    fields = native_fields(config, vision_config)
    if is_eva:
        fields["vision_config"] = _eva_config(vision_config)
    native = LlamaVidConfig(
        **fields,
        qformer_config=_qformer_config(config.get("bert_config", BERT), width),
        num_query=config.get("num_query", 32),
        compress_type=config.get("compress_type"),
        qformer_width=width,
        has_cls=is_eva,
    )
    return build(LlamaVidForConditionalGeneration, native, _with_key_biases(state_dict), RENAMES)


def _eva_config(fields: Mapping[str, Any]) -> InstructBlipVisionConfig:
    width = fields["hidden_size"]
    taken = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    return InstructBlipVisionConfig(
        **{name: fields[name] for name in taken},
        intermediate_size=int(width * fields.get("mlp_ratio", MLP_RATIO)),
        layer_norm_eps=fields.get("layer_norm_eps", 1e-6),
    )


def _qformer_config(fields: Mapping[str, Any], width: int) -> InstructBlipQFormerConfig:
    others = {name: value for name, value in fields.items() if name != "cross_attention_freq"}
    every = fields.get("cross_attention_freq", 2)
    return InstructBlipQFormerConfig(
        **others, cross_attention_frequency=every, encoder_hidden_size=width
    )


def _with_key_biases(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EVA has biases of queries and values; with zeros for keys they are one tensor."""
    joined = dict(state_dict)
    for name in state_dict:
        match = re.fullmatch(r"(.*\.attn\.)q_bias", name)
        if match is None:
            continue
        query, value = joined.pop(name), joined.pop(f"{match[1]}v_bias")
        joined[f"{match[1]}qkv.bias"] = torch.cat([query, torch.zeros_like(value), value])
    return joined
