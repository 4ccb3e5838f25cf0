"""From samples to batches of encoded rows that may run together.

for batch in batches(encoded(subject, samples, responses, types="paper", turns="last"), 4096):
    measured = passes([inputs for _, inputs in batch])          # `passes.py`
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from probe.data.sample import Sample
from probe.data.token_types import LAST
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject

Row = tuple[Sample, Inputs]


def encoded(
    subject: Subject, samples: Sequence[Sample], responses: Sequence[Any], **options: Any
) -> Iterator[Row]:
    """Each sample with its encoded prompt and, where it is given, its response."""
    for sample, response in zip(samples, responses, strict=True):
        image: Any = sample.image if sample.images else None
        image = list(image) if isinstance(image, tuple) else image
        yield sample, subject.encode(image, sample.question, response, **options)


def batches(rows: Iterable[Row], token_limit: int) -> Iterator[list[Row]]:
    """Consecutive rows that fit into `token_limit` tokens once padded, at least one row a batch.

    Rows with and without vision tokens are never mixed: in a batch with images LLaVA-Mini runs
    pre-fusion on the rows without one as well. Nor are rows with and without a response.
    """
    batch: list[Row] = []
    longest = 0
    for row in rows:
        inputs = row[1]
        longest = max(longest, inputs["input_ids"].shape[1])
        too_large = longest * (len(batch) + 1) > token_limit
        if batch and (too_large or _kind(inputs) != _kind(batch[-1][1])):
            yield batch
            batch, longest = [], inputs["input_ids"].shape[1]
        batch.append(row)
    if batch:
        yield batch


def _kind(inputs: Inputs) -> tuple[bool, int]:
    """Equal for rows that may share a batch: whether they are still to be answered; and -1 with
    vision tokens, otherwise the number of images (whose tokens a reducer may all have removed).
    """
    images = -1 if inputs.types.vision.any() else len(inputs.images[0])
    return ends_in_prompt(inputs), images


def ends_in_prompt(inputs: Inputs) -> bool:
    """Whether a row is still to be answered."""
    return bool(inputs.types.role[0, -1] == LAST)
