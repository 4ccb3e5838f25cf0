"""From samples to batches of encoded rows that may run together.

for batch in batches(encoded(subject, samples, responses, types="paper", turns="last"), 4096):
    measured = passes(batch.inputs)          # `passes.py`
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from probe.data.sample import Sample
from probe.data.token_types import LAST
from probe.subject.image_questions import shared_tokens
from probe.subject.inputs import Inputs, without_images
from probe.subject.processed_images import ProcessedImages
from probe.subject.subject import Subject

Row = tuple[Sample, Inputs]
ALONE = "each question alone"


def encoded(
    subject: Subject, samples: Sequence[Sample], responses: Sequence[Any], **options: Any
) -> Iterator[Row]:
    """Each sample with its encoded prompt and, where it is given, its response. Images that several
    neighbouring samples are about are prepared once.
    """
    known = ProcessedImages()
    for sample, response in zip(samples, responses, strict=True):
        image: Any = sample.image if sample.images else None
        image = list(image) if isinstance(image, tuple) else image
        yield sample, subject.encode(image, sample.question, response, known=known, **options)


@dataclass
class Batch:
    """Rows that run together. `prefix`: what all of them share ("" for nothing); `alone`: else,
    what a record says about that.
    """

    rows: list[Row]
    prefix: str = ""
    alone: str = ""

    @property
    def inputs(self) -> list[Inputs]:
        return [inputs for _, inputs in self.rows]


def batches(
    rows: Iterable[Row],
    token_limit: int,
    prefix_of: Callable[[Sample, Inputs], tuple[str, str]] = lambda sample, inputs: ("", ALONE),
    joins: Callable[[Inputs], bool] = lambda inputs: True,
) -> Iterator[Batch]:
    """Consecutive rows that fit into `token_limit` tokens once padded, at least one row a batch.

    prefix_of: `Batch.prefix`, equal for rows that share the tokens up to their last vision token,
    and `Batch.alone` of a row. What is shared counts once, and only the first row of such a batch
    keeps its images.

    joins: whether a row with images of its own can share a batch at all.

    Rows with and without vision tokens are never mixed: in a batch with images LLaVA-Mini runs
    pre-fusion on the rows without one as well. Nor are rows with and without a response, rows with
    images and with videos (an encoder reads all images of a batch before its videos), and rows
    whose pixels would be padded where no model could tell (`_unpadded`).
    """
    batch, kind, longest = Batch([]), None, 0
    for sample, inputs in rows:
        prefix, alone = prefix_of(sample, inputs)
        tokens = inputs["input_ids"].shape[1] - (shared_tokens(inputs) if prefix else 0)
        longest = max(longest, tokens)
        fits = longest * (len(batch.rows) + 1) <= token_limit
        is_alike = kind == (prefix, *_kind(inputs))
        if batch.rows and not (fits and is_alike and (prefix or joins(inputs))):
            yield batch
            batch, longest = Batch([]), tokens
        kind = (prefix, *_kind(inputs))
        batch.prefix, batch.alone = prefix, alone
        later = prefix and batch.rows
        batch.rows.append((sample, without_images(inputs) if later else inputs))
    if batch.rows:
        yield batch


def _kind(inputs: Inputs) -> tuple[bool, int, tuple]:
    """Equal for rows that may share a batch: whether they are still to be answered; -1 with vision
    tokens, otherwise the number of images (whose tokens a reducer may all have removed); and their
    pixels.
    """
    images = -1 if inputs.types.vision.any() else len(inputs.images[0])
    return ends_in_prompt(inputs), images, _unpadded(inputs)


def _unpadded(inputs: Inputs) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The tensors of pixels of a row, and what of their shapes another row must have as well.

    Missing views (image, view, channel, y, x) are filled up, and missing patches (image, patch,
    size) where a mask or positions say which there are. Frames, heights and widths, and patches of
    which nothing says how many there are, can't be.
    """
    pixels = {
        name: value
        for name, value in inputs.items()
        if torch.is_tensor(value) and value.is_floating_point()
    }
    per_patch = [
        tuple(value.shape[:2])
        for name, value in inputs.items()
        if name not in pixels and torch.is_tensor(value) and value.ndim >= 2
    ]
    shapes = []
    for name, value in sorted(pixels.items()):
        has_views = value.ndim > 4 and "video" not in name
        has_mask = value.ndim == 3 and tuple(value.shape[:2]) in per_patch
        first = 2 if has_mask else 1
        shape = () if has_views else tuple(value.shape[first:])
        shapes.append((name, shape))
    return tuple(shapes)


def ends_in_prompt(inputs: Inputs) -> bool:
    """Whether a row is still to be answered."""
    return bool(inputs.types.role[0, -1] == LAST)
