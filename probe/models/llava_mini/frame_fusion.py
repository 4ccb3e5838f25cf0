"""The text reads the images: every frame on its own, a few at a time, averaged over the frames of
each row.

    for each frame:  tokens, text = prefusion([vision | tokens | text])
    text of a row = mean over its frames, in float32

One rule serves images, videos, several images in a prompt and batches of all of them.

Source: `prepare_inputs_labels_for_multimodal` of the authors' `llavamini_arch.py` (one image or
video per prompt).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from probe.models.llava_mini.encoding import EncodedVision
from probe.models.llava_mini.placeholder_layout import Visual, Words, pack

Frame = tuple[
    Tensor, int, int
]  # pixels (view, 3, height, width), row, place among all frames of the batch (-1: none)


@dataclass(frozen=True)
class Text:
    """The words of a batch as pre-fusion gets them."""

    words: Words
    raw: Float[Tensor, "row word dim"]
    visible: Bool[Tensor, "row word"]  # False: hidden from pre-fusion, goes to the LLM as it is
    ids: Int[Tensor, "row word"]

    def row(self, row: int) -> Int[Tensor, " word"]:
        return self.ids[row][self.words.valid[row]]


@dataclass(frozen=True)
class FusedText:
    """What came out for a few frames: their tokens, and the text of their rows."""

    tokens: Float[Tensor, "frame token dim"]
    places: Sequence[int]  # of the frames, among all frames of the batch
    text: Float[Tensor, "reading word dim"]
    rows: Sequence[int]  # the row of each reading
    frames: int = 1  # that each reading is the mean of


def text_of(
    input_ids: Int[Tensor, "row token"],
    is_word: Bool[Tensor, "row token"],
    embeds: Float[Tensor, "row token dim"],
    fuse_mask: Bool[Tensor, "row covered"] | Int[Tensor, "row covered"] | None,
) -> Text:
    """Packs the words. Hidden are those that `fuse_mask` excludes, or that it is too short to
    cover, and id 0.
    """
    words = pack(is_word)
    fusable = (
        input_ids > 0
    )  # the authors' code takes id 0 for padding whatever it means, and the weights know it so
    if fuse_mask is not None:
        fusable = fusable & fit(fuse_mask, input_ids)
    return Text(words, words.take(embeds), words.valid & words.take(fusable), words.take(input_ids))


def fit(
    fuse_mask: Bool[Tensor, "row covered"] | Int[Tensor, "row covered"],
    like: Shaped[Tensor, "row token"],
) -> Bool[Tensor, "row token"]:
    """A mask for these tokens: False where it does not reach."""
    return torch.nn.functional.pad(
        fuse_mask.to(like.device).bool(), (0, like.shape[1] - fuse_mask.shape[1])
    )


def answered(encoded: EncodedVision, text: Text, row: int) -> Float[Tensor, "1 word dim"]:
    """The row's text after it has read a video whose frames are gone. ValueError unless it was
    given with the video.
    """
    question, ids, visible = encoded.question, text.row(row), text.visible[row]
    n = 0 if question is None else len(question.ids)
    if question is None or not torch.equal(question.ids, ids[:n].cpu()) or visible[n:].any():
        raise ValueError(
            "LLaVA-Mini: expected the prompt that a long video was encoded with, got another; its frames are gone, so "
            "call encode_image(frames, input_ids=prompt) for each prompt, or with a larger keep_frames"
        )
    fused = text.raw[row].float()
    return torch.cat([question.fused.to(fused), fused[n:]])[None]


def average(
    readings: Iterable[FusedText], text: Text
) -> tuple[Float[Tensor, "token dim"], Float[Tensor, "row word dim"]]:
    """All vision tokens in order, and the text of each row averaged over its frames, raw where it
    is hidden.
    """
    tokens: dict[int, Tensor] = {}
    total, frames = (
        torch.zeros_like(text.raw, dtype=torch.float32),
        text.raw.new_zeros(len(text.raw), 1, 1).float(),
    )
    for reading in readings:
        tokens |= zip(reading.places, reading.tokens, strict=True)
        rows = torch.tensor(reading.rows, device=total.device)
        total = total.index_add(
            0, rows, reading.text.to(total.device, total.dtype) * reading.frames
        )
        frames = frames.index_add(0, rows, frames.new_full((len(rows), 1, 1), reading.frames))
    fused = torch.where(text.visible[..., None], (total / frames).to(text.raw.dtype), text.raw)
    return torch.cat(
        [tokens[place] for place in sorted(tokens) if place >= 0] or [fused[0, :0]]
    ), fused


def frames_of(visuals: Sequence[Visual], rows: int, images: Any, videos: Any) -> list[Frame]:
    """Every frame of a batch in order, and an all-zero one for each row without an image.

    The authors train text-only rows of an image batch with such a dummy, so their words are fused
    as well.
    """
    frames: list[Frame] = []
    for visual in visuals:
        pixels = (
            videos[visual.index, : visual.frames]
            if visual.video
            else images[visual.index : visual.index + 1]
        )
        frames += [(frame, visual.row, len(frames) + i) for i, frame in enumerate(pixels)]
    without = sorted(set(range(rows)) - {visual.row for visual in visuals})
    example = (
        videos[0] if images is None else images
    )  # which may be none, and still say how large they are
    return frames + [(example.new_zeros(example.shape[1:]), row, -1) for row in without]


def chunks(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """At most `size` consecutive frames of the same shape."""
    chunk: list[Frame] = []
    for frame in frames:
        if chunk and (len(chunk) == size or chunk[0][0].shape != frame[0].shape):
            yield chunk
            chunk = []
        chunk.append(frame)
    if chunk:
        yield chunk
