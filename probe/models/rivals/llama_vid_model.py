"""LLaMA-VID's config, model and head; `llama_vid.py` says what it is."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, no_type_check

import torch
from einops import rearrange
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, Cache, InstructBlipQFormerConfig, InstructBlipVisionModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from probe.models.llava_mini.generation import repeated_in_blocks
from probe.models.llava_mini.placeholder_layout import rows_of
from probe.models.rivals.base import (
    Pixels,
    Region,
    RivalConfig,
    RivalForConditionalGeneration,
    RivalModel,
    TokenIds,
)
from probe.models.rivals.question_compressor import QuestionCompressor

QuestionIds = Int[Tensor, "question word"]


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
        self.image_seq_length = 1 + len(self.content_regions())

    def content_regions(self) -> list[Region]:
        """The patches that each content token of a frame pools: top, left, bottom, right."""
        side = self.patches_per_side
        kind, _, parts = (self.compress_type or "").partition(":")
        if kind == "mean":
            return [(0, 0, side, side)]
        kernel = side // int(parts) if kind else 1
        starts = range(0, side - kernel + 1, kernel)
        return [(top, left, top + kernel, left + kernel) for top in starts for left in starts]

    def token_regions(self, count: int) -> list[Region | None]:
        """The context token looks at the whole frame, as the question has it."""
        return [None, *self.content_regions()]


class LlamaVidModel(RivalModel):
    _supports_flash_attn = False  # the Q-Former's masks differ between queries
    config: LlamaVidConfig
    NOTE = "queries have read the question; the last layer gives the context token"
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

    def question_inputs(self, views: int, frames: int | None, words: int) -> dict[str, Any]:
        """A question of `words` words about each of `views` images, or about a video."""
        images = views if frames is None else 1
        longest = self.config.qformer_config.max_position_embeddings
        device = self.compressor.query.device
        ids = torch.zeros(images, min(words, longest), dtype=torch.long, device=device)
        return {"query_ids": ids} | ({} if frames is None else {"frames": [frames]})

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
        frames: Sequence[int] | Int[Tensor, " visual"] | None = None,
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
        cls = features.shape[1] % 2
        content = self.multi_modal_projector(self.pooled(features[:, cls:]))
        starts = [sum(counts[:image]) for image in range(len(counts))]
        asked = [counts[image] for image in images]  # frames of each question
        pairs = [
            (question, starts[image] + number)
            for question, image in enumerate(images)
            for number in range(counts[image])
        ]
        question, frame = torch.tensor(pairs, device=features.device).reshape(-1, 2).T
        ids = query_ids[question]
        own_mask = mask.long()[question]
        context = self.compressor(features[frame], ids, own_mask, cls)
        tokens = torch.cat([context, content[frame]], 1)
        return [of_question.flatten(0, 1) for of_question in tokens.split(asked)]

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
    _supports_flash_attn = False
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
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs,
    ):
        """As `RivalForConditionalGeneration.forward`, with the questions of `vision_tokens`;
        placeholders follow the questions' order.
        """
        how = {"query_ids": query_ids, "query_mask": query_mask}
        how |= {"query_image": query_image, "frames": frames}
        kwargs |= {"past_key_values": past_key_values, "cache": cache}
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
