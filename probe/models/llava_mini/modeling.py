"""LLaVA-Mini: one vision token per image, because the text reads the image before the LLM reads
the text.

    patches  = vision_tower(image)                              576 for 336 pixels
    tokens   = projector(compressor(patches))                   C x C learned queries
    tokens, text = prefusion([projector(patches) | tokens | text])
    answer   = llm(text with `tokens` at the placeholders of <image>)

Where the released code differs from the paper, the model follows the code, with which the published
weights were trained.

Source: arXiv 2501.03895; github.com/ictnlp/LLaVA-Mini.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModel, Cache, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from probe.models.llava_mini import fusion_in_llm
from probe.models.llava_mini.cache_argument import cache_keyword, pop_cache
from probe.models.llava_mini.compressor import LlavaMiniCompressor, sincos_table
from probe.models.llava_mini.configuration import LlavaMiniConfig
from probe.models.llava_mini.frame_fusion import (
    EncodedVision,
    FrameFusionMixin,
    average_over_frames,
)
from probe.models.llava_mini.frames import list_frames
from probe.models.llava_mini.placeholder_layout import (
    PlacedVisual,
    assign_visuals,
    pack_text,
    prefusion_positions,
    rows_of,
    rows_without,
    with_views,
)
from probe.models.llava_mini.prefusion import LlavaMiniPrefusion

TokenIds = Int[Tensor, "row token"]
FuseMask = Bool[Tensor, "row covered"] | Int[Tensor, "row covered"]
ImagePixels = Float[Tensor, "image view 3 height width"] | Float[Tensor, "image 3 height width"]
VideoPixels = Float[Tensor, "video frame view 3 height width"]


@dataclass
class LlavaMiniModelOutput(BaseModelOutputWithPast):
    """The LLM's output, and the vision tokens (token, dim) that it read."""

    image_hidden_states: Tensor | None = None


class LlavaMiniPreTrainedModel(PreTrainedModel):
    config: LlavaMiniConfig
    base_model_prefix = "model"
    input_modalities = ["image", "video", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = [  # noqa: RUF012
        "LlamaDecoderLayer",
        "PrefusionLayer",
        "CLIPEncoderLayer",
        "LlavaMiniCompressor",
    ]
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, LlavaMiniCompressor):
            init.normal_(module.query, std=0.02)
            init.copy_(module.pos_embed, sincos_table(module.pos_embed.shape[1], module.size))


class LlavaMiniModel(FrameFusionMixin, LlavaMiniPreTrainedModel):
    """Vision tower, compressor, pre-fusion and LLM, without the head that predicts words."""

    def __init__(self, config: LlavaMiniConfig):
        super().__init__(config)
        self.build_vision(config)
        layers = 0 if config.fusion == "in_llm" else config.num_prefusion_layers
        self.prefusion = LlavaMiniPrefusion(config.text_config, layers)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def copy_llm_to_prefusion(self) -> None:
        """Initialises the pre-fusion layers from the LLM's first layers instead of at random."""
        for layer, source in zip(self.prefusion.layers, self.language_model.layers, strict=False):
            layer.load_state_dict(source.state_dict())

    @can_return_tuple
    def forward(
        self,
        input_ids: TokenIds | None = None,
        pixel_values: ImagePixels | None = None,
        pixel_values_videos: VideoPixels | None = None,
        attention_mask: Tensor | None = None,
        fuse_mask: FuseMask | None = None,
        vision: Sequence[EncodedVision] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "row token dim"] | None = None,
        **kwargs,
    ):
        """The LLM's hidden states. Arguments as in `LlavaMiniForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("LLaVA-Mini: expected input_ids or inputs_embeds, and not both")
        cache = pop_cache(kwargs) if past_key_values is None else past_key_values
        if self.config.fusion == "in_llm" and input_ids is not None:
            return self._in_llm(
                input_ids,
                pixel_values,
                pixel_values_videos,
                attention_mask,
                vision,
                cache,
                **kwargs,
            )
        tokens = None
        if input_ids is not None:
            inputs_embeds, tokens = self.merge(
                input_ids, pixel_values, pixel_values_videos, attention_mask, fuse_mask, vision
            )
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            **kwargs | cache_keyword(type(self.language_model).forward, cache),
        )
        return LlavaMiniModelOutput(**outputs, image_hidden_states=tokens)

    def _in_llm(
        self,
        input_ids,
        images,
        videos,
        attention_mask,
        vision,
        cache,
        position_ids=None,
        use_cache=None,
        **_,
    ):
        if vision:
            raise ValueError(
                "LLaVA-Mini in the LLM: expected pixel_values, got encoded images, which only "
                "pre-fusion can reuse"
            )
        frames = []
        if images is not None or videos is not None:
            frames = self._frames(input_ids, images, videos)
        frames = [frame for frame in frames if frame.place >= 0]  # the LLM needs no dummy
        use_cache = self.config.text_config.use_cache if use_cache is None else use_cache
        return fusion_in_llm.run(
            self, input_ids, frames, attention_mask, position_ids, cache, use_cache
        )

    def merge(
        self,
        input_ids: TokenIds,
        pixel_values: ImagePixels | None = None,
        pixel_values_videos: VideoPixels | None = None,
        attention_mask: Tensor | None = None,
        fuse_mask: FuseMask | None = None,
        vision: Sequence[EncodedVision] | None = None,
    ) -> tuple[Float[Tensor, "row token dim"], Float[Tensor, "seen dim"] | None]:
        """The LLM's input: fused words with the vision tokens at the placeholders; and the vision
        tokens alone.
        """
        placeholder = input_ids == self.config.image_token_id
        embed = self.get_input_embeddings()
        if pixel_values is None and pixel_values_videos is None and not vision:
            if placeholder.any():
                raise ValueError(
                    "LLaVA-Mini: expected pixel_values for the image placeholders in input_ids, "
                    "got none"
                )
            return embed(input_ids), None  # a batch without any image is not fused
        is_token = torch.ones_like(placeholder)
        if attention_mask is not None and attention_mask.ndim == 2:
            is_token = attention_mask[:, -input_ids.shape[1] :].bool()
        embeds = embed(input_ids.masked_fill(placeholder, 0))
        embeds = embeds * is_token[..., None]  # padding is zero, as in the authors' code
        text = pack_text(input_ids, is_token & ~placeholder, embeds, fuse_mask)
        if vision:
            owners = rows_of(placeholder, [encoded.num_tokens for encoded in vision])
            readings = self.read_encoded(vision, owners, text)
        else:
            frames = self._frames(input_ids, pixel_values, pixel_values_videos)
            readings = self.read_frames(frames, text)
        tokens, fused = average_over_frames(readings, text)
        tokens = tokens.to(embeds.device, embeds.dtype)
        merged = text.words.put(embeds, fused).masked_scatter(placeholder[..., None], tokens)
        return merged, tokens

    def _frames(self, input_ids, pixel_values, pixel_values_videos):
        visuals = self.visuals(input_ids, pixel_values, pixel_values_videos)
        images = with_views(pixel_values)
        return list_frames(visuals, len(input_ids), images, pixel_values_videos)

    def visuals(
        self,
        input_ids: TokenIds,
        pixel_values: ImagePixels | None,
        pixel_values_videos: VideoPixels | None,
    ) -> list[PlacedVisual]:
        """The images and videos of a batch in placeholder order, with their rows."""
        images = with_views(pixel_values)
        videos = pixel_values_videos
        tokens = [
            self.config.tokens_per_frame(pixels.shape[-4])
            for pixels in (images, videos)
            if pixels is not None
        ]
        return assign_visuals(
            input_ids == self.config.image_token_id,
            images=0 if images is None else len(images),
            videos=0 if videos is None else len(videos),
            image_tokens=tokens[0],
            frame_tokens=tokens[-1],
            max_frames=1 if videos is None else videos.shape[1],
        )

    def frame_rows(
        self,
        input_ids: TokenIds,
        pixel_values: ImagePixels | None = None,
        pixel_values_videos: VideoPixels | None = None,
        vision: Sequence[EncodedVision] | None = None,
    ) -> list[int]:
        """The row of each frame, in the order in which frames run through pre-fusion.

        In a batch with images, a row without one has an all-zero frame, after all others.
        """
        if vision:
            placeholder = input_ids == self.config.image_token_id
            owners = rows_of(placeholder, [encoded.num_tokens for encoded in vision])
            counts = [sum(len(seen.tokens) for seen in encoded.seen) for encoded in vision]
        elif pixel_values is not None or pixel_values_videos is not None:
            visuals = self.visuals(input_ids, pixel_values, pixel_values_videos)
            owners = [visual.row for visual in visuals]
            counts = [visual.frames for visual in visuals]
        else:
            return []
        frames = [row for row, count in zip(owners, counts, strict=True) for _ in range(count)]
        return frames + rows_without(owners, len(input_ids))

    def prefusion_positions(
        self, input_ids: TokenIds, views: int = 1, attention_mask: Tensor | None = None
    ) -> Int[Tensor, "row key"]:
        """The sequence that pre-fusion runs over for each frame, as `placeholder_layout` has it.

        Its vision rows are the joined grid of the sub-images, row by row, then the patches of the
        whole image; with a single view only the latter.
        """
        is_word = input_ids != self.config.image_token_id
        if attention_mask is not None:
            is_word = is_word & attention_mask.bool()
        patches = views * self.config.patches_per_side**2
        return prefusion_positions(is_word, patches, self.tokens_along)
