"""The responses that a measurement is given: words, ids, or those of another record, so that
compared conditions answer the same words.

    responses_of("a cat", samples)       # the same for all
    responses_of(record, samples)        # by the samples' ids
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import xarray as xr

from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.subject.inputs import Ids

Response = str | Ids | xr.DataTree | Sequence[str | Ids | None] | None


def responses_of(response: Response, samples: Sequence[Sample]) -> list[Any]:
    """One for each sample; from a record by the samples' ids."""
    if isinstance(response, xr.DataTree):
        return _recorded(response, samples)
    is_list = isinstance(response, list | tuple)
    is_ids = is_list and all(isinstance(item, Integral) for item in response)
    one_each = len(samples) > 1 and not isinstance(response, str | None)
    if one_each or (is_list and not is_ids):
        responses: Any = list(response)  # pyright: ignore[reportArgumentType]
        if len(responses) != len(samples):
            raise ProbeError(
                "measure", expected=f"{len(samples)} responses", got=str(len(responses))
            )
        return responses
    return [response] * len(samples)


def _recorded(record: xr.DataTree, samples: Sequence[Sample]) -> list[list[int]]:
    dataset = record.to_dataset()
    if "response_ids" not in dataset:
        raise ProbeError("measure", expected="a record with response_ids", got="one without")
    sample_ids, padded_ids = dataset["sample"].values.tolist(), dataset["response_ids"].values
    recorded = dict(zip(sample_ids, padded_ids, strict=True))
    if missing := [sample.id for sample in samples if sample.id not in recorded]:
        raise ProbeError(
            "measure", expected="a record with the same samples", got=f"none for {missing[0]!r}"
        )
    return [[token for token in recorded[sample.id].tolist() if token >= 0] for sample in samples]


def source_of(response: Response) -> str:
    """Where responses come from, as a record says it."""
    if response is None:
        return "generate"
    return "record" if isinstance(response, xr.DataTree) else "user"
