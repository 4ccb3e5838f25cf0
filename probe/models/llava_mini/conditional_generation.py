"""LLaVA-Mini with the head that predicts words: logits, loss, and `generate`.

    model = LlavaMiniForConditionalGeneration.from_pretrained(folder).eval()
    model.generate(**processor(images=image, text=prompt, return_tensors="pt"))

Source: arXiv 2501.03895; github.com/ictnlp/LLaVA-Mini.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from probe.models.llava_mini.configuration import LlavaMiniConfig
from probe.models.llava_mini.frame_fusion import EncodedVision
from probe.models.llava_mini.generation import LlavaMiniGenerationMixin
from probe.models.llava_mini.modeling import (
    FuseMask,
    ImagePixels,
    LlavaMiniModel,
    LlavaMiniPreTrainedModel,
    TokenIds,
    VideoPixels,
)
from probe.models.llava_mini.placeholder_layout import fit_mask


@dataclass
class LlavaMiniCausalLMOutput(CausalLMOutputWithPast):
    """Logits of the LLM, and the vision tokens (token, dim) that it read."""

    image_hidden_states: Tensor | None = None


class LlavaMiniForConditionalGeneration(LlavaMiniPreTrainedModel, LlavaMiniGenerationMixin):
    """LLaVA-Mini with the head that predicts words; registered with
    `AutoModelForImageTextToText`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LlavaMiniConfig):
        super().__init__(config)
        self.model = LlavaMiniModel(config)
        self.lm_head = nn.Linear(
            config.text_config.hidden_size, config.text_config.vocab_size, bias=False
        )
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def encode_image(self, *args, **kwargs) -> EncodedVision:
        """`LlavaMiniModel.encode_image`: an image or video encoded once for later questions."""
        return self.model.encode_image(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: TokenIds | None = None,
        pixel_values: ImagePixels | None = None,
        pixel_values_videos: VideoPixels | None = None,
        attention_mask: Tensor | None = None,
        fuse_mask: FuseMask | None = None,
        labels: TokenIds | None = None,
        vision: Sequence[EncodedVision] | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Float[Tensor, "row token dim"] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ):
        """Logits, and the loss if there are labels.

        input_ids: as long as the LLM's sequence, with C x C placeholders for an image, and for each
        frame of a video.
        pixel_values, pixel_values_videos: images and videos in placeholder order over the batch.
        Frames beyond a video's placeholders are padding.
        vision: results of `encode_image`, one for each image or video, instead of pixels.
        fuse_mask: False hides a word from pre-fusion, so that it enters the LLM unchanged; so are
        words past the mask's end. Responses must be hidden, since generated words are never fused.
        labels: -100 where nothing is learned; what is learned is a response, and hidden.
        past_key_values: the KV cache; `cache` is its name since transformers 5.24, whose `generate`
        asks this signature for it.
        """
        if labels is not None:
            unlearned = labels == -100
            fuse_mask = (
                unlearned if fuse_mask is None else unlearned & fit_mask(fuse_mask, unlearned)
            )
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            attention_mask=attention_mask,
            fuse_mask=fuse_mask,
            vision=vision,
            past_key_values=cache if past_key_values is None else past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        others = dict(outputs)
        logits = self.lm_head(_kept(others.pop("last_hidden_state"), logits_to_keep))
        loss = None
        if labels is not None:
            vocab = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab, **kwargs)
        return LlavaMiniCausalLMOutput(loss=loss, logits=logits, **others)


def _kept(
    hidden: Float[Tensor, "row token dim"], logits_to_keep: int | Tensor
) -> Float[Tensor, "*kept dim"]:
    """The positions whose logits are asked for, as transformers' models read `logits_to_keep`.

    An integer keeps the last positions (0: all), one axis of positions serves every row, two axes
    are positions of each row or, if boolean, a mask, whose result has no row axis.
    """
    if isinstance(logits_to_keep, int):
        return hidden[:, -logits_to_keep:]
    if logits_to_keep.ndim == 1:
        return hidden[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden[logits_to_keep]
    return hidden.take_along_dim(logits_to_keep[..., None], dim=1)
