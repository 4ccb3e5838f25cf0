"""From images and text to a rival's inputs.

processor = RivalProcessor(image_processor, tokenizer, tokens_per_image=36)
inputs = processor(images=image, text="USER: <image>\\nWhat is this? ASSISTANT:")
model(**inputs)
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from probe.data.image_views import padded_to_square
from probe.models.llava_mini.chat_templates import chat_template
from probe.models.original.layout import Settings
from probe.models.piecewise_processor import PiecewiseProcessor, flat_images


class RivalProcessor(PiecewiseProcessor):
    """CLIP's image processor, the LLM's tokenizer, and the number of vision tokens of an image.

    tokens_per_image: placeholders of each `<image>`. May be changed where the model can make
        another number of tokens (MQT-LLaVA).
    aspect: "pad" pads an image to a square as the authors' code does, "crop" takes its middle.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        *others: Any,
        tokens_per_image: int = 576,
        aspect: str = "pad",
        image_token: str = "<image>",
        image_token_id: int | None = None,
        chat_template: str | None = None,
    ):
        super().__init__(
            image_processor,
            tokenizer,
            *others,
            image_token=image_token,
            image_token_id=image_token_id,
            chat_template=chat_template,
        )
        self.tokens_per_image = tokens_per_image
        self.aspect = aspect

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = "pt",
        **tokenizing: Any,
    ) -> BatchFeature:
        """`input_ids` and `attention_mask`, and `pixel_values` if there are images, which come in
        the order of `<image>` over the texts.

        Raises ValueError where texts and images do not match.
        """
        shown = [self.encoded(image) for image in flat_images(images)]
        data: dict[str, Any] = {}
        if shown:
            data["pixel_values"] = torch.cat([pixels for pixels, _ in shown])
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            data |= self._text_inputs(texts, [ids for _, ids in shown], **tokenizing)
        return BatchFeature(data, tensor_type=return_tensors)

    def encoded(self, image: Image.Image) -> tuple[Float[Tensor, "view 3 height width"], list[int]]:
        """What the vision tower gets of an image, and the ids that stand for it."""
        return self.pixels([image]), [self.image_token_id] * self.tokens_per_image

    def pixels(
        self, images: Sequence[Image.Image], crop: bool = False
    ) -> Float[Tensor, "image 3 height width"]:
        """Images, each as one view for the vision tower; `crop`: whatever the aspect."""
        views = [image.convert("RGB") for image in images]
        if self.aspect == "pad" and not crop:
            views = [padded_to_square(view, self.image_processor) for view in views]
        return self.image_processor(views, return_tensors="pt")["pixel_values"]

    def _text_inputs(
        self, texts: Sequence[str], images: Sequence[list[int]], **tokenizing: Any
    ) -> dict[str, Tensor]:
        """`images`: the ids of each image."""
        places = len(self._marks(texts))
        if places != len(images):
            raise ValueError(
                f"{type(self).__name__}: expected as many images as the texts have "
                f"{self.image_token} for them, got {len(images)} for {places}"
            )
        each = iter(images)
        special = tokenizing.get("add_special_tokens", True)
        rows = [self._pieces(text, each, add_special_tokens=special) for text in texts]
        return self._batch(rows, **tokenizing)


def square_image_processor(config: Any) -> CLIPImageProcessorPil:
    """CLIP's, for the vision tower of a native config."""
    side = config.vision_config.image_size
    return CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )


def processor_options(config: Any, settings: Settings) -> dict[str, Any]:
    """What the authors' settings say of every rival's processor."""
    return {
        "tokens_per_image": config.image_seq_length,
        "aspect": "pad" if settings.get("image_aspect_ratio") == "pad" else "crop",
        "image_token_id": config.image_token_id,
        "chat_template": chat_template("v1"),
    }


def rival_processor(
    config: Any, settings: Settings, tokenizer: Any, folders: Any
) -> RivalProcessor:
    """The processor of a rival that has nothing special."""
    options = processor_options(config, settings)
    return RivalProcessor(square_image_processor(config), tokenizer, **options)
