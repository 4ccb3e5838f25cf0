"""From samples to padded batches that end in an answer: what one teacher-forced forward takes.

for batch in batches(encoded(subject, samples, responses, types="paper", turns="last"), 4096):
    rows = answered(subject, [inputs for _, inputs in batch], {"max_new_tokens": 32})
    subject.model(**collate(rows, side="right"))
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from probe.data.sample import Sample
from probe.data.token_types import FINE
from probe.subject.inputs import Inputs, collate, with_response
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
    pre-fusion on the rows without one as well.
    """
    batch: list[Row] = []
    longest = 0
    for row in rows:
        inputs = row[1]
        longest = max(longest, inputs["input_ids"].shape[1])
        too_large = longest * (len(batch) + 1) > token_limit
        if batch and (too_large or _image_kind(inputs) != _image_kind(batch[-1][1])):
            yield batch
            batch, longest = [], inputs["input_ids"].shape[1]
        batch.append(row)
    if batch:
        yield batch


def _image_kind(inputs: Inputs) -> int:
    """Equal for rows that may share a batch: -1 with vision tokens, otherwise the number of
    images (whose tokens a reducer may all have removed).
    """
    return -1 if inputs.types.vision.any() else len(inputs.images[0])


def answered(subject: Subject, rows: Sequence[Inputs], options: dict[str, Any]) -> list[Inputs]:
    """The rows, each followed by the model's own response; a conversation that already ends in an
    answer stays as it is. `options`: of `generate`.
    """
    rows = list(rows)
    last = FINE.index("last")
    unanswered = [i for i, inputs in enumerate(rows) if inputs.types.role[0, -1] == last]
    if unanswered:
        prompts = collate([rows[i] for i in unanswered], side="left")
        responses = subject.generate_ids(prompts, **options)
        for i, ids in zip(unanswered, responses, strict=True):
            rows[i] = with_response(rows[i], ids)
    return rows
