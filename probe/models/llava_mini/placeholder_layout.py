"""Which image stands where: the order of images and frames over a batch, and the words of each row
packed together.

`input_ids` hold as many placeholders as the LLM gets vision tokens, so a row's placeholders say
whose images it has. Index arithmetic only: nothing here knows a model.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

# What a row of pre-fusion is, if it is not a word: see `LlavaMiniModel.prefusion_positions`.
VISION, COMPRESSED, FILLED = -1, -2, -3


@dataclass(frozen=True)
class Visual:
    """An image or a video of the batch, in placeholder order."""

    video: bool
    index: int  # among the images, or the videos
    row: int
    frames: int = 1


@dataclass(frozen=True)
class Words:
    """The positions of a batch that are words (no placeholder, no padding), row by row, packed to
    the left.
    """

    index: Int[Tensor, "row word"]  # position in the sequence
    valid: Bool[Tensor, "row word"]  # False: filled up, to the longest row

    def take(self, x: Shaped[Tensor, "row token ..."]) -> Shaped[Tensor, "row word ..."]:
        rows = torch.arange(len(x), device=x.device)[:, None]
        return x[rows, self.index.to(x.device)]

    def put(
        self, x: Shaped[Tensor, "row token dim"], words: Shaped[Tensor, "row word dim"]
    ) -> Shaped[Tensor, "row token dim"]:
        """x with the words in their places; what is not valid must hold what stood there."""
        index = self.index.to(x.device)[..., None].expand(-1, -1, x.shape[-1])
        return x.scatter(1, index, words.to(x.device, x.dtype))


def with_views(
    images: Float[Tensor, "image *view 3 height width"] | None,
) -> Float[Tensor, "image view 3 height width"] | None:
    """Images of a single view may leave its axis out."""
    return images[:, None] if images is not None and images.ndim == 4 else images


def pack(is_word: Bool[Tensor, "row token"]) -> Words:
    """The words of every row, in order.

    >>> pack(torch.tensor([[True, False, True]])).index
    tensor([[0, 2]])
    """
    order = (~is_word).byte().argsort(dim=1, stable=True)
    index = order[:, : int(is_word.sum(1).max())]
    return Words(index, is_word.gather(1, index))


def assign_visuals(
    placeholder: Bool[Tensor, "row token"],
    images: int,
    videos: int,
    image_tokens: int,
    frame_tokens: int,
    max_frames: int,
) -> list[Visual]:
    """Whose images and videos these are, in placeholder order. A video shorter than `max_frames` is
    padded with frames.

    Where images leave no token (C = 0) they are dealt evenly to the rows. Raises ValueError where
    the placeholders don't fit what was given.
    """
    if videos and not max_frames:
        raise ValueError("LLaVA-Mini: expected videos of at least one frame, got none")
    if not (image_tokens and frame_tokens):
        return _distribute(len(placeholder), images, videos, max_frames)
    runs = _runs(placeholder)
    if not videos:
        found = [(row, False, 1) for row, n in runs for _ in range(n // image_tokens)]
        fits = all(n % image_tokens == 0 for _, n in runs)
    elif not images and len(runs) != videos:  # videos back to back: none of them may be padded
        whole = frame_tokens * max_frames
        found = [(row, True, max_frames) for row, n in runs for _ in range(n // whole)]
        fits = all(n % whole == 0 for _, n in runs)
    else:
        is_video = [not images or n != image_tokens for _, n in runs]
        found = [
            (row, video, n // frame_tokens if video else 1)
            for (row, n), video in zip(runs, is_video, strict=True)
        ]
        fits = all(
            n % frame_tokens == 0 and n <= frame_tokens * max_frames
            for (_, n), video in zip(runs, is_video, strict=True)
            if video
        )
    given = {False: images, True: videos}
    if not fits or any(
        sum(video is kind for _, video, _ in found) != n for kind, n in given.items()
    ):
        raise ValueError(
            f"LLaVA-Mini: expected {image_tokens} image placeholders for each of {images} images and {frame_tokens} "
            f"for each frame of {videos} videos (of up to {max_frames} frames), got runs of {[n for _, n in runs]}; "
            "let the processor expand the prompt, put words between videos, and pass a video of one frame as an image"
        )
    count = {False: iter(range(images)), True: iter(range(videos))}
    return [Visual(video, next(count[video]), row, frames) for row, video, frames in found]


def _runs(placeholder: Tensor) -> list[tuple[int, int]]:
    """(row, length) of every unbroken run of placeholders."""
    return [
        (row, len(list(run)))
        for row, line in enumerate(placeholder.tolist())
        for here, run in groupby(line)
        if here
    ]


def _distribute(rows: int, images: int, videos: int, max_frames: int) -> list[Visual]:
    if images % rows or videos % rows:
        raise ValueError(
            f"LLaVA-Mini: without vision tokens in the prompt every row needs as many images, got {images} images and "
            f"{videos} videos for {rows} rows"
        )
    return [Visual(False, i, i * rows // images) for i in range(images)] + [
        Visual(True, i, i * rows // videos, max_frames) for i in range(videos)
    ]


def rows_of(placeholder: Bool[Tensor, "row token"], tokens: list[int]) -> list[int]:
    """The row of each visual, of which the number of tokens is known, in placeholder order.

    >>> rows_of(torch.tensor([[True, True, False], [False, True, False]]), [1, 1, 1])
    [0, 0, 1]
    """
    if not any(tokens):
        return [visual.row for visual in _distribute(len(placeholder), len(tokens), 0, 1)]
    left, rows, row = placeholder.sum(1).tolist(), [], 0
    for n in tokens:
        while row < len(left) and not left[row]:
            row += 1
        rows.append(min(row, len(left) - 1))
        left[rows[-1]] -= n
    if any(left):
        raise ValueError(
            f"LLaVA-Mini: expected {tokens} image placeholders for the encoded images, got "
            f"{placeholder.sum(1).tolist()} in the rows of input_ids; let the processor expand the prompt"
        )
    return rows
