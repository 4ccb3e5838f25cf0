"""From images, videos and text to the model's inputs.

    processor = LlavaMiniProcessor(image_processor, tokenizer, compressor_size=1)
    inputs = processor(images=image, text="USER: <image>\\nWhat is this? ASSISTANT:")
    model(**inputs)

`<image>` becomes as many placeholders as the LLM gets vision tokens: C x C, for each frame of a
video too. The text between images is tokenized piece by piece, as the authors do. As in their
code, a prompt begins with two begin-of-text tokens, the tokenizer's and the template's, unless
`add_special_tokens=False`.

Source: `tokenizer_image_token` and `process_images` of the authors' `llavamini/mm_utils.py`, and
`preprocess` of their `llavamini/train/train.py`.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from probe.models.llava_mini.image_processing import split_views, squashed, video_frames
from probe.models.piecewise_processor import VIDEO_TOKEN, PiecewiseProcessor, flat_images

IGNORE_INDEX = -100
# What closes an answer in `chat_templates.STYLES`.
END_OF_TURN = re.compile(r" ?(<\|eot_id\|>|<\|im_end\|>|</s>|###|\n)?")


class LlavaMiniProcessor(PiecewiseProcessor):
    """CLIP's image processor, the LLM's tokenizer, and how an image is split into views.

    compressor_size: the model's C.
    view_tokens: vision tokens of each view, for a model without compression; None: C x C per image.
    resolution_ratio: N; an image is read as N x N sub-images and as a whole (1: only as a whole).
    aspect: "square" crops the middle of each view, "pad" pads it to a square.
    image_token_id: the model's id of a placeholder, if not the tokenizer's for `<image>`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        compressor_size: int = 1,
        view_tokens: int | None = None,
        resolution_ratio: int = 1,
        aspect: str = "square",
        image_token: str = "<image>",
        image_token_id: int | None = None,
        chat_template: str | None = None,
    ):
        if aspect not in ("square", "pad"):
            raise ValueError(
                f"LlavaMiniProcessor: expected aspect 'square' or 'pad', got {aspect!r}"
            )
        super().__init__(
            image_processor,
            tokenizer,
            image_token=image_token,
            image_token_id=image_token_id,
            chat_template=chat_template,
        )
        self.compressor_size = compressor_size
        self.view_tokens = view_tokens
        self.resolution_ratio = resolution_ratio
        self.aspect = aspect

    @property
    def tokens_per_frame(self) -> int:
        """Vision tokens that the LLM gets for an image, or for a frame."""
        if self.view_tokens is None:
            return self.compressor_size**2
        return self.views_per_frame * self.view_tokens

    @property
    def views_per_frame(self) -> int:
        """N x N sub-images and the whole image, or the whole image alone."""
        return self.resolution_ratio**2 + 1 if self.resolution_ratio > 1 else 1

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        *,
        vision: Sequence[Any] | None = None,
        return_tensors: str | None = "pt",
        **tokenizing: Any,
    ) -> BatchFeature:
        """`input_ids`, `attention_mask`, and `pixel_values` and `pixel_values_videos` if given.

        images: images, in the order of `<image>` over the texts.
        videos: as in `video_frames`, at `<video>`, or at `<image>` in a batch without images.
        vision: results of `encode_image`, instead of both.
        Raises ValueError where texts and images do not match.
        """
        images = list(flat_images(images))
        clips = _clips(videos)
        data: dict[str, Any] = {}
        tokens: dict[str, list[int]] = {
            "image": [encoded.num_tokens for encoded in vision or ()],
            "video": [],
        }
        if images:
            data["pixel_values"] = torch.stack([self.pixels(image) for image in images])
            tokens["image"] = [self.tokens_per_frame] * len(images)
        if clips:
            pixels = [torch.stack(list(self.frames(clip))) for clip in clips]
            tokens["video"] = [self.tokens_per_frame * len(frames) for frames in pixels]
            if not self.tokens_per_frame and len(set(map(len, pixels))) > 1:
                lengths = f"videos of {', '.join(str(len(frames)) for frames in pixels)} frames"
                raise ValueError(
                    "LLaVA-Mini: expected videos of one length, for no token tells it, "
                    f"got {lengths}"
                )
            data["pixel_values_videos"] = torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            data |= self._batch(self._tokenize(texts, tokens, **tokenizing), **tokenizing)
        return BatchFeature(data, tensor_type=return_tensors)

    def pixels(
        self, image: Image.Image, pad_first: bool = False
    ) -> Float[Tensor, "view 3 height width"]:
        """An image for the vision tower. `pad_first`: as in the authors' training, see
        `split_views`.
        """
        colour = None
        if self.aspect == "pad":
            colour = tuple(int(255 * mean) for mean in self.image_processor.image_mean)
        views = split_views(image.convert("RGB"), self.resolution_ratio, colour, pad_first)
        return self.image_processor(views, return_tensors="pt")["pixel_values"]

    def frames(self, video: Any) -> Iterator[Float[Tensor, "view 3 height width"]]:
        """The frames of a video for the vision tower, one at a time, for `encode_image`."""
        side = dict(self.image_processor.crop_size)["height"]
        empty = True
        for frame in video_frames(video):
            empty = False
            yield self.pixels(squashed(frame, side))
        if empty:
            raise ValueError("LLaVA-Mini: expected a video of at least one frame, got none")

    def training_example(
        self, messages: Sequence[dict[str, Any]], tokens: Sequence[int] = ()
    ) -> dict[str, list[int]]:
        """`input_ids` and `labels` of a conversation, to learn only the assistant's words and their
        end of turn.

        tokens: placeholders of each `<image>`; by default those of an image.
        """
        text = self.apply_chat_template(list(messages), add_generation_prompt=True)
        cuts = [0]
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = list(messages[:number])
                prompt = self.apply_chat_template(before, add_generation_prompt=True)
                start = _common(prompt, text)
                answer = _words(message["content"])
                end = text.index(answer, start) + len(answer)
                cuts += [start, END_OF_TURN.match(text, end).end()]  # pyright: ignore[reportOptionalMemberAccess]
        pieces = [
            text[a:b] for a, b in pairwise([*cuts, len(text)])
        ]  # not learned, learned, not ...
        bos = self.tokenizer.bos_token
        counts = tokens or [self.tokens_per_frame] * text.count(self.image_token)
        images = self._placeholders(counts)
        ids, labels = [], []
        for i, piece in enumerate(pieces):
            # Unlike prompts, training examples have one begin-of-text token.
            special = i == 0 and not (bos and piece.startswith(bos))
            new = self._pieces(piece, images, add_special_tokens=special)
            ids += new
            labels += new if i % 2 else [IGNORE_INDEX] * len(new)
        return {"input_ids": ids, "labels": labels}

    def _tokenize(
        self, texts: list[str], tokens: dict[str, list[int]], **tokenizing: Any
    ) -> list[list[int]]:
        """Ids of each text, with the placeholders of each image."""
        marks = self._marks(texts)
        at_image = "image" if tokens["image"] or not tokens["video"] else "video"
        kinds = ["video" if mark == VIDEO_TOKEN else at_image for mark in marks]
        for kind, counts in tokens.items():
            if len(counts) != kinds.count(kind):
                raise ValueError(
                    f"LlavaMiniProcessor: expected as many {kind}s as the texts have "
                    f"{self.image_token} for them, got {len(counts)} for {kinds.count(kind)}"
                )
        remaining = {kind: iter(counts) for kind, counts in tokens.items()}
        images = self._placeholders([next(remaining[kind]) for kind in kinds])
        special = tokenizing.get("add_special_tokens", True)
        return [self._pieces(text, images, add_special_tokens=special) for text in texts]

    def _placeholders(self, counts: Sequence[int]) -> Iterator[list[int]]:
        return iter([[self.image_token_id] * count for count in counts])


def _words(content: str | Sequence[dict[str, Any]]) -> str:
    """The text of a message, as templates write it."""
    if not isinstance(content, str):
        content = "".join(item.get("text", "") for item in content)
    return content.strip()


def _clips(videos: Any) -> list[Any]:
    """A list of videos; a single one may be a path, an array, or a list of frames."""
    if videos is None:
        return []
    one = not isinstance(videos, list | tuple) or (
        len(videos) > 0 and isinstance(videos[0], Image.Image)
    )
    return [videos] if one else list(videos)


def _common(a: str, b: str) -> int:
    """The length of the longest common beginning."""
    pairs = zip(a, b, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
