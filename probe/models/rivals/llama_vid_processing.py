"""From images or frames, text and the question to LLaMA-VID's inputs.

    processor = LlamaVidProcessor(image_processor, tokenizer, question_tokenizer)
    inputs = processor(images=image, text="USER: <image>\\nWhat is this? ASSISTANT:")
    inputs["query_ids"]                                  # BERT's ids of "What is this?"

The question about an image or video is what the user says last, as in the authors' code, where it
is set before every turn; BERT reads its last 256 tokens.

Source: arXiv 2311.17043; `vlm_attention` and `update_prompt` of dvlab-research/LLaMA-VID at
b3d3ae2.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature

from probe.models.piecewise_processor import VIDEO_TOKEN, flat_images
from probe.models.rivals.processing import RivalProcessor

MOST_QUESTION_TOKENS = 256
USER, ASSISTANT = "USER:", "ASSISTANT:"  # headers of the prompts that it was trained with


class LlamaVidProcessor(RivalProcessor):
    """As `RivalProcessor`, with BERT's tokenizer for the question. `tokens_per_image`: those of an
    image, or of each frame of a video.
    """

    question_tokenizer: Any

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        question_tokenizer: Any = None,
        tokens_per_image: int = 257,
        aspect: str = "pad",
        image_token: str = "<image>",
        image_token_id: int | None = None,
        chat_template: str | None = None,
    ):
        super().__init__(
            image_processor,
            tokenizer,
            question_tokenizer,
            tokens_per_image=tokens_per_image,
            aspect=aspect,
            image_token=image_token,
            image_token_id=image_token_id,
            chat_template=chat_template,
        )

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Sequence[Sequence[Any]] | None = None,
        *,
        questions: Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        **tokenizing: Any,
    ) -> BatchFeature:
        """`input_ids`, `attention_mask`, and for images and videos `pixel_values`, `frames` (how
        many each has), `query_ids` and `query_mask`.

        videos: lists of frames, in place of images; at `<image>` or `<video>`. As in the authors'
        code their frames are cropped, whatever the aspect.
        questions: one for each image or video, where it is not what the user says last.
        Raises ValueError for images and videos at once, and where texts, images and questions do
        not match.
        """
        clips = [list(flat_images(clip)) for clip in videos or ()]
        shown = [[image] for image in flat_images(images)] + clips
        if clips and len(shown) > len(clips):
            raise ValueError("LlamaVidProcessor: expected images or videos, got both")
        texts = [text] if isinstance(text, str) else list(text or ())
        data: dict[str, Any] = {}
        if shown:
            views = [self.pixels(frames, crop=bool(clips)) for frames in shown]
            data["pixel_values"] = torch.cat(views)
            data["frames"] = torch.tensor([len(frames) for frames in shown])
            asked = self._questions(texts) if questions is None else list(questions)
            data |= self._query_inputs(asked, len(shown))
        if texts:
            ids = [[self.image_token_id] * self.tokens_per_image * len(f) for f in shown]
            data |= self._text_inputs(texts, ids, **tokenizing)
        return BatchFeature(data, tensor_type=return_tensors)

    def _questions(self, texts: Sequence[str]) -> list[str]:
        """What the user says last in each text, once for each of its images."""
        asked: list[str] = []
        for text in texts:
            question = text.rpartition(USER)[2].partition(ASSISTANT)[0]
            for placeholder in (self.image_token, VIDEO_TOKEN):
                question = question.replace(placeholder, "")
            asked += [question.strip()] * len(self._marks([text]))
        return asked

    def _query_inputs(self, questions: Sequence[str], images: int) -> dict[str, torch.Tensor]:
        if len(questions) != images:
            raise ValueError(
                f"LlamaVidProcessor: expected a question for each of {images} images or videos, "
                f"got {len(questions)}"
            )
        encoded = self.question_tokenizer(
            list(questions),
            padding="longest",
            truncation=True,
            max_length=MOST_QUESTION_TOKENS,
            return_tensors="pt",
        )
        return {"query_ids": encoded["input_ids"], "query_mask": encoded["attention_mask"]}
