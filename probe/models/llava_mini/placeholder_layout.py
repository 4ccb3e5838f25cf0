"""Which row of a batch each image belongs to, and the words of each row packed together.

`input_ids` hold as many placeholders as the LLM gets vision tokens, so a row's placeholders tell
which images are its own. Index arithmetic only: nothing here knows a model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count, groupby

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

# Positions of pre-fusion that are not words: see `prefusion_positions`.
VISION_ROW = -1
COMPRESSED_ROW = -2
PADDING_ROW = -3


@dataclass(frozen=True)
class PlacedVisual:
    """An image or a video of the batch, in placeholder order."""

    video: bool
    index: int  # among the images, or among the videos
    row: int
    frames: int = 1


@dataclass(frozen=True)
class Words:
    """The positions of a batch that are words (no placeholder, no padding), packed to the left."""

    index: Int[Tensor, "row word"]  # position in the sequence
    valid: Bool[Tensor, "row word"]  # False: filler up to the longest row

    def take(self, x: Shaped[Tensor, "row token ..."]) -> Shaped[Tensor, "row word ..."]:
        rows = torch.arange(len(x), device=x.device)[:, None]
        return x[rows, self.index.to(x.device)]

    def put(
        self, x: Shaped[Tensor, "row token dim"], words: Shaped[Tensor, "row word dim"]
    ) -> Shaped[Tensor, "row token dim"]:
        """x with the words at their positions; filler must hold what x has there."""
        index = self.index.to(x.device)[..., None]
        width = x.shape[-1]
        return x.scatter(1, index.expand(-1, -1, width), words.to(x.device, x.dtype))


@dataclass(frozen=True)
class BatchText:
    """The words of a batch as pre-fusion gets them."""

    words: Words
    raw: Float[Tensor, "row word dim"]
    visible: Bool[Tensor, "row word"]  # False: hidden from pre-fusion, enters the LLM unchanged
    ids: Int[Tensor, "row word"]

    def row_ids(self, row: int) -> Int[Tensor, " word"]:
        return self.ids[row][self.words.valid[row]]


def pack(is_word: Bool[Tensor, "row token"]) -> Words:
    """The words of every row, in order.

    >>> pack(torch.tensor([[True, False, True]])).index
    tensor([[0, 2]])
    """
    words_first = (~is_word).byte().argsort(dim=1, stable=True)
    index = words_first[:, : int(is_word.sum(1).max())]
    return Words(index, is_word.gather(1, index))


def pack_text(
    input_ids: Int[Tensor, "row token"],
    is_word: Bool[Tensor, "row token"],
    embeds: Float[Tensor, "row token dim"],
    fuse_mask: Bool[Tensor, "row covered"] | Int[Tensor, "row covered"] | None,
) -> BatchText:
    """Packs the words of a batch. Hidden from pre-fusion are id 0 and what `fuse_mask` excludes or
    is too short to cover.
    """
    words = pack(is_word)
    # The authors' code treats id 0 as padding whatever it means, and was trained that way.
    fusable = input_ids > 0
    if fuse_mask is not None:
        fusable = fusable & fit_mask(fuse_mask, input_ids)
    visible = words.valid & words.take(fusable)
    return BatchText(words, words.take(embeds), visible, words.take(input_ids))


def fit_mask(
    fuse_mask: Bool[Tensor, "row covered"] | Int[Tensor, "row covered"],
    like: Shaped[Tensor, "row token"],
) -> Bool[Tensor, "row token"]:
    """The mask at the length of `like`: False past its end."""
    missing = like.shape[1] - fuse_mask.shape[1]
    return torch.nn.functional.pad(fuse_mask.to(like.device).bool(), (0, missing))


def with_views(
    images: Float[Tensor, "image *view 3 height width"] | None,
) -> Float[Tensor, "image view 3 height width"] | None:
    """Images with a view axis, which images of a single view may omit."""
    return images[:, None] if images is not None and images.ndim == 4 else images


# What one run of placeholders stands for: (is a video, number of frames) of each visual in it.
# None: the run's length does not fit.
RunContents = list[tuple[bool, int]] | None


def assign_visuals(
    placeholder: Bool[Tensor, "row token"],
    images: int,
    videos: int,
    image_tokens: int,
    frame_tokens: int,
    max_frames: int,
) -> list[PlacedVisual]:
    """The row of every image and video, in placeholder order, and the frames of every video.

    Videos of a batch are padded to `max_frames`; the placeholders tell how many frames are real.
    What an unbroken run of placeholders stands for depends on the batch:

        images only                       any number of images
        as many runs as videos, or both   one video, or (at the length of an image) one image
        videos only, fewer runs           any number of videos, none of them padded

    Without any vision token (C = 0) images are distributed evenly over the rows. Raises ValueError
    where the placeholders do not fit the images and videos.
    """
    if videos and not max_frames:
        raise ValueError("LLaVA-Mini: expected videos of at least one frame, got none")
    if not (image_tokens and frame_tokens):
        return _distribute(len(placeholder), images, videos, max_frames)
    runs = _runs(placeholder)
    one_video_each = images > 0 or len(runs) == videos
    contents = []
    for _, length in runs:
        if not videos:
            contents.append(_adjacent_images(length, image_tokens))
        elif images and length == image_tokens:
            contents.append([(False, 1)])
        elif one_video_each:
            contents.append(_one_video(length, frame_tokens, max_frames))
        else:
            contents.append(_adjacent_videos(length, frame_tokens, max_frames))
    is_video = [video for visuals in contents for video, _ in visuals or ()]
    if None in contents or is_video.count(False) != images or is_video.count(True) != videos:
        raise ValueError(
            f"LLaVA-Mini: expected {image_tokens} image placeholders for each of {images} images "
            f"and {frame_tokens} for each frame of {videos} videos (of up to {max_frames} frames), "
            f"got runs of {[length for _, length in runs]}; let the processor expand the prompt, "
            "put words between videos, and pass a video of one frame as an image"
        )
    image_index = count()
    video_index = count()
    return [
        PlacedVisual(video, next(video_index if video else image_index), row, frames)
        for (row, _), visuals in zip(runs, contents, strict=True)
        for video, frames in visuals or ()
    ]


def _runs(placeholder: Tensor) -> list[tuple[int, int]]:
    """(row, length) of every unbroken run of placeholders."""
    return [
        (row, len(list(run)))
        for row, flags in enumerate(placeholder.tolist())
        for is_placeholder, run in groupby(flags)
        if is_placeholder
    ]


def _adjacent_images(length: int, image_tokens: int) -> RunContents:
    images, rest = divmod(length, image_tokens)
    return None if rest else [(False, 1)] * images


def _one_video(length: int, frame_tokens: int, max_frames: int) -> RunContents:
    frames, rest = divmod(length, frame_tokens)
    return None if rest or frames > max_frames else [(True, frames)]


def _adjacent_videos(length: int, frame_tokens: int, max_frames: int) -> RunContents:
    videos, rest = divmod(length, frame_tokens * max_frames)
    return None if rest else [(True, max_frames)] * videos


def _distribute(rows: int, images: int, videos: int, max_frames: int) -> list[PlacedVisual]:
    """The same number of images and of videos for every row."""
    if images % rows or videos % rows:
        raise ValueError(
            "LLaVA-Mini: expected the same number of images for every row, as the prompt has no "
            f"vision tokens, got {images} images and {videos} videos for {rows} rows"
        )
    return [PlacedVisual(False, i, i * rows // images) for i in range(images)] + [
        PlacedVisual(True, i, i * rows // videos, max_frames) for i in range(videos)
    ]


def rows_of(placeholder: Bool[Tensor, "row token"], tokens: list[int]) -> list[int]:
    """The row of each visual, given its number of tokens, in placeholder order.

    >>> rows_of(torch.tensor([[True, True, False], [False, True, False]]), [1, 1, 1])
    [0, 0, 1]
    """
    if not any(tokens):
        return [visual.row for visual in _distribute(len(placeholder), len(tokens), 0, 1)]
    available = placeholder.sum(1).tolist()  # placeholders of each row not assigned yet
    rows: list[int] = []
    row = 0
    for number in tokens:
        while row < len(available) - 1 and not available[row]:
            row += 1
        rows.append(row)
        available[row] -= number
    if any(available):
        raise ValueError(
            f"LLaVA-Mini: expected {tokens} image placeholders for the encoded images, got "
            f"{placeholder.sum(1).tolist()} in the rows of input_ids; let the processor expand the "
            "prompt"
        )
    return rows


def rows_without(occupied: Iterable[int], rows: int) -> list[int]:
    """The rows of a batch that have no image.

    >>> rows_without([0, 0, 2], 4)
    [1, 3]
    """
    return sorted(set(range(rows)) - set(occupied))


def prefusion_positions(
    is_word: Bool[Tensor, "row token"], vision: int, compressed: int
) -> Int[Tensor, "row key"]:
    """The sequence of pre-fusion: each word by its position in `input_ids`, after `vision` vision
    rows and `compressed` compressed tokens, which are VISION_ROW and COMPRESSED_ROW; filler of
    shorter rows is PADDING_ROW.

    >>> prefusion_positions(torch.tensor([[True, False, True]]), vision=1, compressed=1)
    tensor([[-1, -2,  0,  2]])
    """
    words = pack(is_word)
    text = words.index.masked_fill(~words.valid, PADDING_ROW)
    front = text.new_tensor([VISION_ROW] * vision + [COMPRESSED_ROW] * compressed)
    return torch.cat([front.expand(len(text), -1), text], dim=1)
