"""What measuring one question will take, said before it is measured.

    plan = expected_memory(subject, "cat.jpg", "what is it ?", new_tokens=32, options=options)
    in_words(plan)      # "record 3.1 MB (maps 0.4 MB); at most 74 MB beside the model"

Without a response it is that of the longest answer that may come.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from probe.data.image import ImageSource
from probe.data.token_types import Types
from probe.hooks.model_structure import placeholder_ids, stacks
from probe.measures.attention.encoder_layout import ENCODERS, has_known_layout
from probe.measures.attention.memory_plan import MemoryPlan, memory_plan
from probe.measures.attention.stack_statistic import DEFAULT_OPTIONS, MeasureOptions
from probe.subject.inputs import Ids, Inputs, with_response
from probe.subject.subject import Subject

LARGE = 2**29  # bytes of a record, or beside the model, that are worth a line


def expected_memory(
    subject: Subject,
    image: ImageSource | Sequence[ImageSource] | None,
    question: str | Sequence[Mapping[str, Any]],
    response: str | Ids | None = None,
    *,
    types: Types = "paper",
    new_tokens: int = 32,
    options: MeasureOptions = DEFAULT_OPTIONS,
) -> MemoryPlan:
    """The plan of one question, measured in all stacks whose positions are known. `new_tokens`: of
    the answer that is to come, without a `response`. Raises ProbeError as `encode` does.
    """
    inputs = subject.encode(image, question, response, types=types)
    if response is None and new_tokens:
        inputs = with_response(inputs, [_any_word(inputs, subject)] * new_tokens)
    measured = {
        name: stack
        for name, stack in stacks(subject.model).items()
        if name == "llm"
        or (inputs.images[0] and (name not in ENCODERS or has_known_layout(subject, inputs, stack)))
    }
    return memory_plan(subject, [inputs], measured, options)


def is_large(plan: MemoryPlan) -> bool:
    """Whether it takes so much that a user should know before."""
    return max(plan.peak, sum(plan.record.values())) >= LARGE


def in_words(plan: MemoryPlan) -> str:
    """One line in megabytes (MB of 2^20 bytes).

    >>> in_words(MemoryPlan({"llm": 3 * 2**20}, 2**20, 2**21, 2**22, 2**21))
    'record 3.0 MB (maps 1.0 MB); at most 7.0 MB beside the model and its own forward'
    """
    maps = f" (maps {_megabytes(plan.maps)})" if plan.maps else ""
    record = _megabytes(sum(plan.record.values()))
    peak = _megabytes(plan.peak)
    return f"record {record}{maps}; at most {peak} beside the model and its own forward"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MB"


def _any_word(inputs: Inputs, subject: Subject) -> int:
    """An id that neither ends an answer nor stands for an image."""
    refused = {*inputs.vocabulary.end_ids, *placeholder_ids(subject.model)}
    return next(id for id in range(inputs.vocabulary.size) if id not in refused)
