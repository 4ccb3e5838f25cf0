"""What the rivals share: a vision tower, a compressor and an LLM, whose placeholders are filled
with the compressor's tokens.

`input_ids` is as long as the LLM's sequence. An image is as many placeholders (`image_token_id`,
the size of the vocabulary: it has no embedding) as tokens are made of it.

A rival is one file: a config, a model with `vision_tokens`, and a head. What else a forward takes
(`how`: the number of tokens, the questions of a Q-Former) is named by its `HOW`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, no_type_check

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.models.llava.configuration_llava import LlavaConfig
from transformers.utils.generic import can_return_tuple

from probe.models.llava_mini.cache_argument import cache_keyword, pop_cache
from probe.models.llava_mini.generation import repeated_in_blocks
from probe.models.llava_mini.placeholder_layout import rows_of

Region = tuple[int, int, int, int]  # top, left, bottom, right, in patches
TokenIds = Int[Tensor, "row token"]
Pixels = Float[Tensor, "image 3 height width"]


@no_type_check  # `strict` checks the fields, and ignores other keys of a config.json
@strict
class RivalConfig(LlavaConfig):
    """A LLaVA config whose image token is the size of the vocabulary."""

    vision_config: Any = None  # configs, or dicts of their fields
    text_config: Any = None
    image_token_index: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.image_token_index is None:
            self.image_token_index = self.text_config.vocab_size

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of an image (24 for 336 pixels and patches of 14)."""
        return self.vision_config.image_size // self.vision_config.patch_size

    def token_regions(self, count: int) -> list[Region | None]:
        """The patches that each of the `count` vision tokens of a view (a tile, a frame) is made
        of, None for one that is made of the whole view.
        """
        side = self.patches_per_side
        return [(row, col, row + 1, col + 1) for row in range(side) for col in range(side)]


@dataclass
class RivalModelOutput(BaseModelOutputWithPast):
    """The LLM's output, and the vision tokens (token, dim) that it read."""

    image_hidden_states: Tensor | None = None


@dataclass
class RivalCausalLMOutput(CausalLMOutputWithPast):
    """The same with logits instead of the last hidden state."""

    image_hidden_states: Tensor | None = None


class RivalPreTrainedModel(PreTrainedModel):
    config: RivalConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]  # noqa: RUF012
    _no_split_modules = ["LlamaDecoderLayer", "CLIPEncoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True


class RivalModel(RivalPreTrainedModel):
    """Vision tower, compressor and LLM. Subclasses set `compressor` and `vision_tokens`."""

    HOW: ClassVar[tuple[str, ...]] = ()  # further arguments of a forward
    NOTE = ""  # what a reader of its attention must know; stands in records and on figures

    def __init__(self, config: RivalConfig):
        super().__init__(config)
        self.vision_tower: Any = self.build_tower(config)
        self.language_model: Any = AutoModel.from_config(config.text_config)

    def build_tower(self, config: RivalConfig) -> nn.Module:
        return AutoModel.from_config(config.vision_config)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def vision_tokens(self, pixel_values: Pixels, **how: Any) -> Any:
        """What the LLM gets for each image: (image, token, dim), or a list of (token, dim)."""
        raise NotImplementedError

    def get_image_features(self, pixel_values: Pixels, **how: Any) -> BaseModelOutputWithPooling:
        """The vision tokens as transformers' models return them (`pooler_output`)."""
        wanted = {name: how[name] for name in self.HOW if how.get(name) is not None}
        tokens: Any = list(self.vision_tokens(pixel_values, **wanted))
        return BaseModelOutputWithPooling(pooler_output=tokens)

    def patch_features(self, pixel_values: Pixels) -> Float[Tensor, "image patch dim"]:
        """The tower's hidden states that the config names, without the class token."""
        layer: Any = self.config.vision_feature_layer
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        return states[layer][:, 1:]

    @can_return_tuple
    def forward(
        self,
        input_ids: TokenIds | None = None,
        pixel_values: Pixels | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Float[Tensor, "row token dim"] | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ):
        """The LLM's hidden states. Arguments as in `RivalForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                f"{type(self).__name__}: expected input_ids or inputs_embeds, and not both"
            )
        how = {name: kwargs.pop(name, None) for name in self.HOW}
        cache = pop_cache(kwargs) if past_key_values is None else past_key_values
        tokens = None
        if input_ids is not None:
            inputs_embeds, tokens = self.merge(input_ids, pixel_values, how)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            **kwargs | cache_keyword(type(self.language_model).forward, cache),
        )
        return RivalModelOutput(**outputs, image_hidden_states=tokens)

    def merge(
        self, input_ids: TokenIds, pixel_values: Pixels | None, how: Mapping[str, Any]
    ) -> tuple[Float[Tensor, "row token dim"], Float[Tensor, "seen dim"] | None]:
        """Word embeddings with the vision tokens at the placeholders; and the vision tokens."""
        placeholder = input_ids == self.config.image_token_id
        embeds = self.get_input_embeddings()(input_ids.masked_fill(placeholder, 0))
        if pixel_values is None:
            if placeholder.any():
                raise ValueError(
                    f"{type(self).__name__}: expected pixel_values for the image placeholders in "
                    "input_ids, got none"
                )
            return embeds, None
        how = self.how_of(placeholder, pixel_values, how)
        features: Any = self.get_image_features(pixel_values, **how).pooler_output
        tokens = torch.cat(list(features)).to(embeds.device, embeds.dtype)
        if len(tokens) != int(placeholder.sum()):
            raise ValueError(
                f"{type(self).__name__}: expected {len(tokens)} placeholders, as many as vision "
                f"tokens, got {int(placeholder.sum())}"
            )
        return embeds.masked_scatter(placeholder[..., None], tokens), tokens

    def how_of(
        self, placeholder: Bool[Tensor, "row token"], pixels: Pixels, how: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """What the placeholders say of `how`, where the call does not."""
        return how


class RivalForConditionalGeneration(RivalPreTrainedModel, GenerationMixin):
    """A rival with the head that predicts words."""

    MODEL: ClassVar[type[RivalModel]]
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: RivalConfig):
        super().__init__(config)
        self.model = self.MODEL(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def vision_tokens(self, pixel_values: Pixels, **how: Any) -> Any:
        """What the LLM gets for each image: (image, token, dim), or a list of (token, dim)."""
        return self.model.vision_tokens(pixel_values, **how)

    def get_image_features(self, pixel_values: Pixels, **how: Any) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **how)

    @can_return_tuple
    def forward(
        self,
        input_ids: TokenIds | None = None,
        pixel_values: Pixels | None = None,
        attention_mask: Tensor | None = None,
        labels: TokenIds | None = None,
        inputs_embeds: Float[Tensor, "row token dim"] | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        **kwargs,
    ):
        """Logits, and the loss if there are labels.

        input_ids: as long as the LLM's sequence, with the placeholders of each image.
        pixel_values: images (or tiles, or frames) in placeholder order over the batch.
        labels: -100 where nothing is learned.
        past_key_values, cache: the KV cache by its old and its new name (transformers 5.24).
        logits_to_keep: the number of last positions whose logits are asked for, 0 for all.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=cache if past_key_values is None else past_key_values,
            **kwargs,
        )
        others = dict(outputs)
        hidden = others.pop("last_hidden_state")
        logits = self.lm_head(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            vocabulary = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocabulary)
        return RivalCausalLMOutput(loss=loss, logits=logits, **others)

    def prepare_inputs_for_generation(self, input_ids, *args, is_first_iteration=False, **kwargs):
        """Images are read with the prompt, and again at every step only without a cache."""
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs |= dict.fromkeys(("pixel_values", *self.MODEL.HOW))
        kwargs["is_first_iteration"] = is_first_iteration
        prepare = super().prepare_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        return prepare(input_ids, *args, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size=1, is_encoder_decoder=False, input_ids=None, **kwargs
    ):
        """Repeats a row's images as a block for its beams, since it may have several or none."""
        pixels = kwargs.pop("pixel_values", None)
        how = {name: kwargs.pop(name) for name in self.MODEL.HOW if name in kwargs}
        if expand_size > 1 and input_ids is not None and pixels is not None:
            pixels, how = self.repeated(input_ids, pixels, how, expand_size)
        expand = super()._expand_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        input_ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        images = {} if pixels is None else {"pixel_values": pixels}
        return input_ids, kwargs | images | how

    def repeated(
        self, input_ids: TokenIds, pixels: Pixels, how: dict[str, Any], copies: int
    ) -> tuple[Float[Tensor, "repeated 3 height width"], dict[str, Any]]:
        """Pixels and further arguments for `copies` of each row."""
        placeholder = input_ids == self.config.image_token_id
        counts = [int(placeholder.sum()) // len(pixels)] * len(pixels)
        return pixels[repeated_in_blocks(rows_of(placeholder, counts), copies)], how
