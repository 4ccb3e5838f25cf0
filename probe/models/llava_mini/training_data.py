"""Instructions (images, videos and a conversation about them) as batches for Trainer.

    collate = Collator(processor)
    model(**collate([instruction, another])).loss

Only the assistant's words and their end of turn are learned. Rows are padded on the right.

Source: `LazySupervisedDataset` and its collator in the authors' `llavamini/train/train.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor

from probe.models.llava_mini.image_processing import (
    RASTER_FORMATS,
    frame_indices,
    squashed,
    video_frames,
)
from probe.models.llava_mini.processing import IGNORE_INDEX, LlavaMiniProcessor


@dataclass(frozen=True)
class VisualSource:
    """An image or video of a conversation: a file, a folder of frames, an image, or frames."""

    kind: Literal["image", "video"]
    source: Any


@dataclass(frozen=True)
class Instruction:
    """One row of training data. `messages` have an image part for each of `visuals` (videos too),
    in
    the same order.
    """

    messages: Sequence[dict[str, Any]]
    visuals: tuple[VisualSource, ...] = ()


@dataclass(frozen=True)
class Collator:
    """Makes a batch of instructions.

    max_length: tokens of a row; longer rows are cut off. Raises ValueError where that would remove
    an image. max_frames: of a video, taken evenly from one frame per second.
    """

    processor: LlavaMiniProcessor
    max_length: int | None = None
    max_frames: int = 8

    def __call__(self, instructions: Sequence[Instruction]) -> dict[str, Tensor]:
        images: list[Tensor] = []
        videos: list[Tensor] = []
        rows = [self._row(instruction, images, videos) for instruction in instructions]
        length = max(len(ids) for ids, _ in rows)
        pad = self.processor.tokenizer.pad_token_id or 0
        batch = {
            "input_ids": torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor(
                [labels + [IGNORE_INDEX] * (length - len(labels)) for _, labels in rows]
            ),
            "attention_mask": torch.tensor(
                [[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows]
            ),
        }
        if images or not videos:
            batch["pixel_values"] = torch.stack(images) if images else self._no_image()
        if videos:
            batch["pixel_values_videos"] = torch.nn.utils.rnn.pad_sequence(videos, batch_first=True)
        return batch

    def _row(
        self, instruction: Instruction, images: list[Tensor], videos: list[Tensor]
    ) -> tuple[list[int], list[int]]:
        """Ids and labels; the pixels go to `images` and `videos`."""
        tokens = []
        for visual in instruction.visuals:
            frames = self._frames(visual)
            tokens.append(self.processor.tokens_per_frame * len(frames))
            if len(frames) == 1:  # to the model, a video of one frame is an image
                images.append(frames[0])
            else:
                videos.append(frames)
        example = self.processor.training_example(instruction.messages, tokens)
        ids = example["input_ids"]
        labels = example["labels"]
        if self.processor.image_token_id in ids[self.max_length :] and self.max_length is not None:
            raise ValueError(
                "LLaVA-Mini: expected images and videos within the first "
                f"max_length={self.max_length} tokens, got a row of {len(ids)}; "
                "pass a larger max_length or fewer max_frames"
            )
        return ids[: self.max_length], labels[: self.max_length]

    def _no_image(self) -> Tensor:
        """No image, for a batch of text only: the model then fuses it with an all-zero image, as in
        the authors' training.
        """
        side = dict(self.processor.image_processor.crop_size)["height"]
        return torch.zeros(0, self.processor.views_per_frame, 3, side, side)

    def _frames(self, visual: VisualSource) -> Tensor:
        """Views of each frame: (frame, view, 3, height, width)."""
        if visual.kind == "image":
            return self.processor.pixels(_upright(visual.source), pad_first=True)[None]
        side = dict(self.processor.image_processor.crop_size)["height"]
        small = [squashed(frame, side) for frame in video_frames(visual.source)]
        if small:
            count = min(len(small), self.max_frames)
            small = [small[index] for index in frame_indices(len(small), count)]
        return torch.stack(list(self.processor.frames(small)))


def _upright(source: str | Path | Image.Image) -> Image.Image:
    """An image, rotated as its EXIF data say if it is a file."""
    if isinstance(source, Image.Image):
        return source
    try:
        with Image.open(source, formats=RASTER_FORMATS) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"LLaVA-Mini: expected an image, got {str(source)!r} ({error})") from None
