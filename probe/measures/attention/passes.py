"""The forwards of a measurement: one `generate` that is measured while it answers, or one forward
over prompt and response.

    passes = Passes(subject, stacks(subject.model), MeasureOptions(), {"max_new_tokens": 32})
    measured = passes([subject.encode(image, question)])
    measured.rows[0].response, measured.nodes[0]["llm"]["mass"], measured.passes    # "one"

Both give the same numbers to 1e-5 (float32). Where decoding cannot be read (beams, no cache) the
model answers first and then reads prompt and answer, and `passes` says why.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe.data.token_types import PADDING
from probe.hooks.attention_tap import tap
from probe.hooks.finite_states import finite_states
from probe.hooks.image_readers import CROSS
from probe.hooks.model_state import active_interventions, active_text_guided_reducers
from probe.hooks.model_structure import LayerStack
from probe.hooks.whole_layers import last_logits
from probe.measures.attention.answer_logprob import (
    DecodedLogprob,
    Logprob,
    logits_needed,
    logprob_of_rows,
    padding_after,
)
from probe.measures.attention.answering import AnsweringStatistic, two_pass_reason
from probe.measures.attention.batches import ALONE, ends_in_prompt
from probe.measures.attention.record_node import node
from probe.measures.attention.sinks import (
    Norms,
    PerLayer,
    hide_sink_type,
    key_sinks,
    layer_norms,
    relative_norms,
    with_sink_type,
)
from probe.measures.attention.stack_queries import (
    DEFAULT_OPTIONS,
    MeasureOptions,
    StackStatistic,
    stack_statistics,
)
from probe.subject.inputs import Ids, Inputs, collate, with_response
from probe.subject.subject import Subject

Nodes = dict[str, dict[str, np.ndarray]]  # {stack: {variable: array}} of one sample
LLM = "llm"


@dataclass(frozen=True)
class Measured:
    """A batch, each row with its response, and what was measured of it. `passes`: "one", or "two"
    and why. `logprob`: of each row's response tokens, None where it is not known. `prefix`: whether
    what precedes the question was computed once for all of them.
    """

    rows: list[Inputs]
    nodes: list[Nodes]
    passes: str
    logprob: list[Logprob] | None
    prefix: str = ALONE


@dataclass(frozen=True)
class Passes:
    """Measures batches of encoded rows.

    generate: options of `Subject.generate_ids` for rows that are still to be answered; None where
    prompts are measured without a response. sinks: as in `measure_samples`.
    """

    subject: Subject
    stacks: Mapping[str, LayerStack]
    options: MeasureOptions = DEFAULT_OPTIONS
    generate: Mapping[str, Any] | None = None
    sinks: str = "keep"

    def __call__(self, rows: Sequence[Inputs]) -> Measured:
        """Rows that all end with their prompt, or all in a response."""
        if self.generate is None or not ends_in_prompt(rows[0]):
            return self._read(list(rows), "one")
        reason = two_pass_reason(self.subject.model, self.generate)
        if self.sinks != "keep":
            reason = reason or "sinks are found before they are counted"
        if CROSS in self.stacks:
            reason = reason or "each step reads the whole image by cross-attention"
        if not reason:
            return self._while_answering(rows)
        responses = self.subject.generate_ids(collate(rows, side="left"), **self.generate)
        return self._read(with_responses(rows, responses), f"two: {reason}")

    def _read(self, rows: list[Inputs], passes: str) -> Measured:
        """One forward over prompts and responses."""
        if self.sinks != "keep":
            rows = [with_sink_type(self.subject, row) for row in rows]
        padded = collate(rows, side="right")
        kept = logits_needed(padded)
        nodes, logits = forward(
            self.subject, padded, self.stacks, self.options, self.sinks == "drop", kept
        )
        logprob = None if logits is None else logprob_of_rows(logits, rows, padding_after(padded))
        return Measured(rows, nodes, passes, logprob)

    def _while_answering(self, rows: Sequence[Inputs]) -> Measured:
        """One `generate`."""
        assert self.generate is not None
        model, prompts = self.subject.model, collate(rows, side="left")
        edited = bool(active_interventions(model) or active_text_guided_reducers(model))
        others = {name: stack for name, stack in self.stacks.items() if name != LLM}
        statistics = stack_statistics(self.subject, prompts, others, self.options)
        answering = None
        pieces = {}
        decoding = DecodedLogprob()
        with ExitStack() as taps:
            taps.enter_context(observed(self.subject, self.stacks, statistics))
            taps.enter_context(decoding.following(model))
            if LLM in self.stacks:
                longest = self.generate.get("max_new_tokens", 32)
                answering = AnsweringStatistic(rows, longest, self.options, edited)
                taps.enter_context(answering.following(model))
                taps.enter_context(tap(self.stacks[LLM].attention, answering))
                pieces = taps.enter_context(layer_norms(self.stacks[LLM]))
            responses = self.subject.generate_ids(prompts, **self.generate)
        answered = with_responses(rows, responses)
        logprob = decoding.of(responses)
        nodes = nodes_of(statistics, others, len(rows))
        if answering is None:
            return Measured(answered, nodes, "one", logprob)
        of_rows = answering.finished(answered)
        if answering.reason:
            return self._read(answered, f"two: {answering.reason}")
        for row, (inputs, statistic) in enumerate(zip(answered, of_rows, strict=True)):
            norms = norms_of_row(pieces, row, answering.padding[row], inputs)
            nodes[row] |= {LLM: llm_node(statistic, self.stacks[LLM], norms, inputs)}
        return Measured(answered, nodes, "one", logprob)


def forward(
    subject: Subject,
    inputs: Inputs,
    measured_stacks: Mapping[str, LayerStack],
    options: MeasureOptions = DEFAULT_OPTIONS,
    drop_sinks: bool = False,
    kept: int = 1,
) -> tuple[list[Nodes], Tensor | None]:
    """One teacher-forced forward under the tap: what is measured of each row of the batch; and the
    logits of the last `kept` positions or more, None where the model has none.
    """
    model: Any = subject.model
    statistics = stack_statistics(subject, inputs, measured_stacks, options)
    if drop_sinks:
        statistics = {name: hide_sink_type(each) for name, each in statistics.items()}
    llm = measured_stacks.get(LLM)
    with ExitStack() as taps:
        taps.enter_context(observed(subject, measured_stacks, statistics))
        pieces = {} if llm is None else taps.enter_context(layer_norms(llm))
        output = model(**inputs, use_cache=False, **last_logits(model, kept))
    others = {name: stack for name, stack in measured_stacks.items() if name != LLM}
    nodes = nodes_of(statistics, others, len(inputs.prompt))
    if llm is not None:
        norms = relative_norms(pieces, inputs.types.role != PADDING, inputs.types.is_query)
        for row, of_row in enumerate(nodes):
            of_row[LLM] = llm_node(statistics[LLM], llm, norms, inputs, row)
    return nodes, getattr(output, "logits", None)


@contextmanager
def observed(
    subject: Subject,
    measured_stacks: Mapping[str, LayerStack],
    statistics: Mapping[str, StackStatistic],
) -> Iterator[None]:
    """The forwards in the block fill these statistics; numbers that overflow are refused."""
    with ExitStack() as taps:
        for name, each in statistics.items():
            if len(each.statistic.ids):
                taps.enter_context(tap(measured_stacks[name].attention, each.statistic))
        taps.enter_context(finite_states("measure", subject.model, measured_stacks))
        yield


def nodes_of(
    statistics: Mapping[str, StackStatistic], measured: Mapping[str, LayerStack], rows: int
) -> list[Nodes]:
    return [
        {name: node(statistics[name], stack, row) for name, stack in measured.items()}
        for row in range(rows)
    ]


def llm_node(
    statistic: StackStatistic, stack: LayerStack, norms: PerLayer, inputs: Inputs, row: int = 0
) -> dict[str, np.ndarray]:
    """One row's variables of the LLM."""
    marked = key_sinks(statistic, stack, norms, inputs, row)
    return node(statistic, stack, row) | {"key_sink": marked[None]}


def norms_of_row(
    pieces: Mapping[int, Sequence[Norms]],
    row: int,
    padding: int,
    inputs: Inputs,
    before: Mapping[int, Sequence[Norms]] | None = None,
) -> PerLayer:
    """Relative norms of one row without padding, of whose last token none is needed. `before`: the
    norms of a prefix.
    """
    length = inputs["input_ids"].shape[1]
    own = {}
    for layer, parts in pieces.items():
        if not parts:  # a layer that reads images is skipped where there is none
            own[layer] = [torch.full((1, length), torch.nan)]
            continue
        norm = torch.cat([part[row : row + 1] for part in parts], 1)[:, padding:]
        if before is not None:
            norm = torch.cat([*before[layer], norm], 1)
        own[layer] = [torch.nn.functional.pad(norm[:, : length - 1], (0, 1))]
    return relative_norms(own, inputs.types.role != PADDING, inputs.types.is_query)


def with_responses(rows: Sequence[Inputs], responses: Sequence[Ids]) -> list[Inputs]:
    """Each row with the ids of its answer."""
    return [with_response(row, ids) for row, ids in zip(rows, responses, strict=True)]
