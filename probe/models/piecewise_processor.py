"""Processors that tokenize the text between images piece by piece, as LLaVA's authors do.

Each `<image>` becomes as many placeholders as the LLM gets vision tokens of it, with what the model
has between them. Only the first piece may begin with the tokenizer's begin-of-text token.

Source: `tokenizer_image_token` of LLaVA's `llava/mm_utils.py`, which all of its descendants have.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

VIDEO_TOKEN = "<video>"


class PiecewiseProcessor(ProcessorMixin):
    """An image processor and a tokenizer that knows the placeholder.

    Images are resized by PIL, as in the authors' code, also where torchvision is installed.

    image_token_id: the model's id of a placeholder, if not the tokenizer's for `image_token`.
    """

    tokenizer: Any
    image_processor: Any

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        *others: Any,
        image_token: str = "<image>",
        image_token_id: int | None = None,
        chat_template: str | None = None,
    ):
        if getattr(image_processor, "backend", "pil") != "pil":  # torchvision: other pixels
            image_processor = CLIPImageProcessorPil.from_dict(image_processor.to_dict())
        super().__init__(image_processor, tokenizer, *others, chat_template=chat_template)
        self.image_token = image_token
        if image_token not in tokenizer.get_vocab():
            tokenizer.add_tokens([image_token], special_tokens=True)
        self.image_token_id = image_token_id or tokenizer.convert_tokens_to_ids(image_token)

    @classmethod
    def validate_init_kwargs(
        cls, processor_config: dict[str, Any], valid_kwargs: Any
    ) -> tuple[dict, dict]:
        """Checks names by signature: transformers reads the code object, in which a decorated
        `__init__` has none.
        """
        names = inspect.signature(cls.__init__).parameters
        return ProcessorMixin.validate_init_kwargs(processor_config, names)

    def _marks(self, texts: Sequence[str]) -> list[str]:
        """The placeholders of all texts, in order."""
        pattern = f"{re.escape(self.image_token)}|{VIDEO_TOKEN}"
        return [mark for text in texts for mark in re.findall(pattern, text)]

    def _pieces(
        self, text: str, images: Iterator[Sequence[int]], add_special_tokens: bool
    ) -> list[int]:
        """Ids of the text, with those that stand for each of its images."""
        ids: list[int] = []
        for i, piece in enumerate(re.split(f"{re.escape(self.image_token)}|{VIDEO_TOKEN}", text)):
            ids += next(images) if i else []
            special = add_special_tokens and i == 0
            ids += self.tokenizer(piece, add_special_tokens=special)["input_ids"]
        return ids

    def _batch(
        self,
        rows: list[list[int]],
        padding_side: str | None = None,
        max_length: int | None = None,
        truncation: bool = False,
        **_: Any,
    ) -> dict[str, Tensor]:
        rows = [row[:max_length] for row in rows] if truncation else rows
        length = max(map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        left = (padding_side or self.tokenizer.padding_side) == "left"

        def filled(row: list[int], value: int) -> list[int]:
            fill = [value] * (length - len(row))
            return fill + row if left else row + fill

        return {
            "input_ids": torch.tensor([filled(row, pad) for row in rows]),
            "attention_mask": torch.tensor([filled([1] * len(row), 0) for row in rows]),
        }


def flat_images(images: Any) -> Iterator[Any]:
    """The images of an image, a list of them, or lists of lists (one a text)."""
    if isinstance(images, list | tuple):
        for image in images:
            yield from flat_images(image)
    elif images is not None:
        yield images
