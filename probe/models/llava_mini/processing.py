"""From images, videos and words to what the model takes.

    processor = LlavaMiniProcessor(image_processor, tokenizer, compressor_size=1)
    inputs = processor(images=image, text="USER: <image>\\nWhat is this? ASSISTANT:", return_tensors="pt")
    model(**inputs)

`<image>` becomes as many placeholders as the LLM gets vision tokens: C x C, for a video C x C a
frame. The text around it is tokenized piece by piece, as the authors do. Their prompts begin with
the template's own begin-of-text behind the tokenizer's, so twice: so do ours, unless
`add_special_tokens=False`.

Source: `tokenizer_image_token` and `process_images` of the authors' `llavamini/mm_utils.py`;
`preprocess` of theirs.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from probe.models.llava_mini.image_processing import squashed, video_frames, views

IGNORE_INDEX = -100
END_OF_TURN = re.compile(
    r" ?(<\|eot_id\|>|<\|im_end\|>|</s>|###|\n)?"
)  # what closes an answer, in `prompts.STYLES`


class LlavaMiniProcessor(ProcessorMixin):
    """CLIP's image processor, the LLM's tokenizer, and how an image is split.

    compressor_size: the model's C. view_tokens: vision tokens of each view, for a model without
    compression; None: C x C for an image. resolution_ratio: N; an image is looked at as N x N
    sub-images and as a whole (1: only as a whole). aspect: "square" crops the middle of each view,
    "pad" fills it up to a square. image_token_id: the model's id for a placeholder, if the
    tokenizer's own for `<image>` is another.
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
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.compressor_size, self.view_tokens = compressor_size, view_tokens
        self.resolution_ratio, self.aspect, self.image_token = resolution_ratio, aspect, image_token
        if image_token not in tokenizer.get_vocab():
            tokenizer.add_tokens([image_token], special_tokens=True)
        self.image_token_id = image_token_id or tokenizer.convert_tokens_to_ids(image_token)

    @property
    def tokens_per_frame(self) -> int:
        """Vision tokens that the LLM gets for an image, or for a frame."""
        parts = self.resolution_ratio**2 + 1 if self.resolution_ratio > 1 else 1
        return self.compressor_size**2 if self.view_tokens is None else parts * self.view_tokens

    @staticmethod
    def validate_init_kwargs(
        processor_config: dict[str, Any], valid_kwargs: Any
    ) -> tuple[dict, dict]:
        """By signature: transformers reads the code object, in which a decorated `__init__` has no
        names.
        """
        names = inspect.signature(LlavaMiniProcessor.__init__).parameters
        return ProcessorMixin.validate_init_kwargs(processor_config, names)

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
        """`input_ids`, `attention_mask` and what there is of `pixel_values` and
        `pixel_values_videos`.

        images: images, in the order of `<image>` over the texts. videos: see `video_frames`; they
        stand at `<video>`, or at `<image>` where there are no images. vision: results of
        `encode_image` take the place of both. Raises ValueError where texts and images don't match.
        """
        pictures, clips = list(_flat(images)), _clips(videos)
        data: dict[str, Any] = {}
        tokens: dict[str, list[int]] = {
            "image": [encoded.num_tokens for encoded in vision or ()],
            "video": [],
        }
        if pictures:
            data["pixel_values"] = torch.stack([self.pixels(picture) for picture in pictures])
            tokens["image"] = [self.tokens_per_frame] * len(pictures)
        if clips:
            pixels = [torch.stack(list(self.frames(clip))) for clip in clips]
            tokens["video"] = [self.tokens_per_frame * len(frames) for frames in pixels]
            if not self.tokens_per_frame and len(set(map(len, pixels))) > 1:
                lengths = f"videos of {', '.join(str(len(frames)) for frames in pixels)} frames"
                raise ValueError(
                    f"LLaVA-Mini: expected videos of one length, for no token tells it, got {lengths}"
                )
            data["pixel_values_videos"] = torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            data |= self._batch(self._tokenize(texts, tokens, **tokenizing), **tokenizing)
        return BatchFeature(data, tensor_type=return_tensors)

    def pixels(
        self, picture: Image.Image, pad_first: bool = False
    ) -> Float[Tensor, "view 3 height width"]:
        """An image as the vision tower sees it. `pad_first`: as in the authors' training, see
        `views`.
        """
        colour = (
            tuple(int(255 * mean) for mean in self.image_processor.image_mean)
            if self.aspect == "pad"
            else None
        )
        parts = views(picture.convert("RGB"), self.resolution_ratio, colour, pad_first)
        return self.image_processor(parts, return_tensors="pt")["pixel_values"]

    def frames(self, video: Any) -> Iterator[Float[Tensor, "view 3 height width"]]:
        """The frames of a video as the vision tower sees them, one at a time: what `encode_image`
        takes.
        """
        side, empty = dict(self.image_processor.crop_size)["height"], True
        for frame in video_frames(video):
            empty = False
            yield self.pixels(squashed(frame, side))
        if empty:
            raise ValueError("LLaVA-Mini: expected a video of at least one frame, got none")

    def training_example(
        self, messages: Sequence[dict[str, Any]], tokens: Sequence[int] = ()
    ) -> dict[str, list[int]]:
        """`input_ids` and `labels` of a conversation: only what the assistant says, with its end of
        turn, is learned.

        tokens: placeholders of each `<image>`; by default those of an image.
        """
        render = self.apply_chat_template
        text, spans = render(list(messages), add_generation_prompt=True), []
        for k, message in enumerate(messages):
            if message["role"] == "assistant":
                start = _common(render(list(messages[:k]), add_generation_prompt=True), text)
                end = text.index(said := _words(message["content"]), start) + len(said)
                spans.append((start, END_OF_TURN.match(text, end).end()))  # pyright: ignore[reportOptionalMemberAccess]
        cuts = [0, *(edge for span in spans for edge in span), len(text)]
        pieces = [text[a:b] for a, b in pairwise(cuts)]  # not learned, learned, not learned ...
        bos = self.tokenizer.bos_token
        counts = iter(tokens or [self.tokens_per_frame] * text.count(self.image_token))
        ids, labels = [], []
        for i, piece in enumerate(pieces):
            special = i == 0 and not (
                bos and piece.startswith(bos)
            )  # in training there is one begin-of-text
            new = self._pieces(piece, counts, add_special_tokens=special)
            ids += new
            labels += new if i % 2 else [IGNORE_INDEX] * len(new)
        return {"input_ids": ids, "labels": labels}

    def _tokenize(
        self, texts: list[str], tokens: dict[str, list[int]], **tokenizing: Any
    ) -> list[list[int]]:
        """Ids of each text, with the placeholders of each image."""
        marks = [
            mark
            for text in texts
            for mark in re.findall(f"{re.escape(self.image_token)}|<video>", text)
        ]
        at_image = "image" if tokens["image"] or not tokens["video"] else "video"
        kinds = ["video" if mark == "<video>" else at_image for mark in marks]
        for kind, counts in tokens.items():
            if len(counts) != kinds.count(kind):
                raise ValueError(
                    f"LlavaMiniProcessor: expected as many {kind}s as the texts have {self.image_token} for them, got "
                    f"{len(counts)} for {kinds.count(kind)}"
                )
        given = {kind: iter(counts) for kind, counts in tokens.items()}
        counts = iter([next(given[kind]) for kind in kinds])
        special = tokenizing.get("add_special_tokens", True)
        return [self._pieces(text, counts, add_special_tokens=special) for text in texts]

    def _pieces(self, text: str, counts: Iterator[int], add_special_tokens: bool) -> list[int]:
        """The pieces between images are tokenized on their own, and only the first begins the
        text.
        """
        ids: list[int] = []
        for i, piece in enumerate(re.split(f"{re.escape(self.image_token)}|<video>", text)):
            ids += [self.image_token_id] * next(counts) if i else []
            ids += self.tokenizer(piece, add_special_tokens=add_special_tokens and i == 0)[
                "input_ids"
            ]
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
        length, pad = max(map(len, rows)), self.tokenizer.pad_token_id or 0
        left = (padding_side or self.tokenizer.padding_side) == "left"

        def filled(row: list[int], value: int) -> list[int]:
            fill = [value] * (length - len(row))
            return fill + row if left else row + fill

        return {
            "input_ids": torch.tensor([filled(row, pad) for row in rows]),
            "attention_mask": torch.tensor([filled([1] * len(row), 0) for row in rows]),
        }


def _words(content: str | Sequence[dict[str, Any]]) -> str:
    """What a message says, as templates write it."""
    return (
        content if isinstance(content, str) else "".join(item.get("text", "") for item in content)
    ).strip()


def _flat(images: Any) -> Iterator[Any]:
    if isinstance(images, list | tuple):
        for image in images:
            yield from _flat(image)
    elif images is not None:
        yield images


def _clips(videos: Any) -> list[Any]:
    """A list of videos; a single one may be a path, an array, or a list of frames."""
    if videos is None:
        return []
    one = not isinstance(videos, list | tuple) or (
        len(videos) > 0 and isinstance(videos[0], Image.Image)
    )
    return [videos] if one else list(videos)


def _common(a: str, b: str) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
