"""Instructions (images, videos and a conversation about them) as batches that Trainer hands to the
model.

    collate = Collator(processor)
    model(**collate([instruction, another])).loss

Only what the assistant says is learned, with its end of turn. Rows are padded on the right.

Source: `LazySupervisedDataset` and its collator in the authors' `llavamini/train/train.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor

from probe.models.llava_mini.image_processing import frame_indices, squashed, video_frames
from probe.models.llava_mini.processing import IGNORE_INDEX, LlavaMiniProcessor


@dataclass(frozen=True)
class VisualSource:
    """What stands at one image of a conversation: a file, a video's folder of frames, an image, or
    frames.
    """

    kind: Literal["image", "video"]
    source: Any


@dataclass(frozen=True)
class Instruction:
    """One row of training data. `messages` hold an image part for each of `visuals`, videos too, in
    their order.
    """

    messages: Sequence[dict[str, Any]]
    visuals: tuple[VisualSource, ...] = ()


@dataclass(frozen=True)
class Collator:
    """Makes a batch of instructions. A video is read at one frame a second, of which `max_frames`
    are taken evenly.

    max_length: tokens of a row; what is longer is cut off. Raises ValueError where that would cut
    an image off.
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
        tokens, each = [], self.processor.tokens_per_frame
        for visual in instruction.visuals:
            frames = self._frames(visual)
            tokens.append(each * len(frames))
            if len(frames) == 1:  # the model takes a video of one frame for an image
                images.append(frames[0])
            else:
                videos.append(frames)
        example = self.processor.training_example(instruction.messages, tokens)
        ids, labels = example["input_ids"], example["labels"]
        if self.processor.image_token_id in ids[self.max_length :] and self.max_length is not None:
            raise ValueError(
                f"LLaVA-Mini: expected images and videos within the first max_length={self.max_length} tokens, got a "
                f"row of {len(ids)}; pass a larger max_length or fewer max_frames"
            )
        return ids[: self.max_length], labels[: self.max_length]

    def _no_image(self) -> Tensor:
        """Where there are words only: the model then reads them beside an all-zero image, as the
        authors train them.
        """
        side = dict(self.processor.image_processor.crop_size)["height"]
        parts = self.processor.resolution_ratio
        return torch.zeros(0, parts**2 + 1 if parts > 1 else 1, 3, side, side)

    def _frames(self, visual: VisualSource) -> Tensor:
        """Views of each frame: (frame, view, 3, height, width)."""
        if visual.kind == "image":
            return self.processor.pixels(_opened(visual.source), pad_first=True)[None]
        side = dict(self.processor.image_processor.crop_size)["height"]
        small = [squashed(frame, side) for frame in video_frames(visual.source)]
        if small:
            small = [small[i] for i in frame_indices(len(small), min(len(small), self.max_frames))]
        return torch.stack(list(self.processor.frames(small)))


def _opened(picture: str | Path | Image.Image) -> Image.Image:
    """An image, upright."""
    if isinstance(picture, Image.Image):
        return picture
    try:
        with Image.open(picture) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"LLaVA-Mini: expected an image, got {str(picture)!r} ({error})") from None
