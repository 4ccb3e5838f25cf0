"""Questions about one image, measured on one prefix: its rows, and their statistic, are computed
once and are part of every question's record.

    shared = SharedPasses(passes, ImageQuestions(subject))
    if shared.key(rows[0]) == shared.key(rows[1]):
        measured = shared(rows)         # as `passes(rows)`, to 1e-5 (float32)

Sums over queries add up exactly: those of the prefix's queries and those of the text after it.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from probe.data.sample import Sample
from probe.data.sample_groups import groups
from probe.data.token_types import PADDING
from probe.hooks.finite_states import finite_states
from probe.measures.attention.answer_logprob import DecodedLogprob, logprob_of_rows
from probe.measures.attention.answering import AnsweringStatistic, two_pass_reason
from probe.measures.attention.batches import ALONE, ends_in_prompt
from probe.measures.attention.passes import (
    LLM,
    Measured,
    Nodes,
    Passes,
    llm_node,
    nodes_of,
    norms_of_row,
    observed,
    with_responses,
)
from probe.measures.attention.sinks import Norms, layer_norms
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.attention.statistic import AttentionStatistic
from probe.measures.attention.type_sums import merge
from probe.records.provenance import content_hash
from probe.subject.image_prefix import ImagePrefix
from probe.subject.image_questions import ImageQuestions, shared_tokens
from probe.subject.inputs import Inputs
from probe.subject.prefix_cache import CachedPrefix

SHARED = "shared by the questions about an image"


@dataclass(frozen=True)
class PrefixMeasurement:
    """What is measured once an image: the LLM's statistic of the prefix, the norms of its hidden
    states, and the other stacks.
    """

    statistic: AttentionStatistic
    norms: Mapping[int, Sequence[Norms]]
    others: Nodes


@dataclass(frozen=True)
class SharedPasses:
    """`passes` for rows of one `key`."""

    passes: Passes
    questions: ImageQuestions

    def key(self, row: Inputs) -> str:
        """Equal for rows that may be measured as one batch, "" for a row without a prefix."""
        types = row.types.ids[0, : shared_tokens(row)]
        if not len(types):
            return ""
        key = self.questions.batch_key(row)
        return content_hash([key, repr(row.types.names), types.tobytes()])

    def reason(self, row: Inputs) -> str:
        """Why a row like this is measured alone, "" where sharing is exact."""
        answers = self.passes.generate or {}
        if self.passes.sinks != "keep":
            return "sinks are found before they are counted"
        reason = two_pass_reason(self.questions.model, answers) if answers else ""
        return reason or self.questions.reason(row, answers, lambda: self._prefix(row)[0])

    def is_kept(self, row: Inputs) -> bool:
        """Whether the prefix of this row has been computed and kept."""
        return self.questions.cache.prefixes.peek(self.questions.key(row)) is not None

    def __call__(self, rows: Sequence[Inputs]) -> Measured:
        passes, questions = self.passes, self.questions
        prefix, known = self._prefix(rows[0])
        answers = passes.generate if ends_in_prompt(rows[0]) else None
        longest = 0 if answers is None else answers.get("max_new_tokens", 32)
        answering = AnsweringStatistic(rows, longest, passes.options, prefix=prefix)
        decoding = DecodedLogprob()
        llm = questions.stack
        with ExitStack() as taps:
            taps.enter_context(answering.following(questions.model))
            taps.enter_context(decoding.following(questions.model))
            taps.enter_context(finite_states("measure", questions.model, [LLM]))
            pieces = taps.enter_context(layer_norms(llm))
            if answers is None:
                logits = questions.read(rows, observe=answering)
                answered = list(rows)
                logprob = logprob_of_rows(logits, rows, [0] * len(rows))
            else:
                responses = questions.generate(rows, observe=answering, **answers)
                answered = with_responses(rows, responses)
                logprob = decoding.of(responses)
        nodes: list[Nodes] = [dict(known.others) for _ in rows]
        if LLM in passes.stacks:
            of_rows = answering.finished(answered)
            assert not answering.reason, answering.reason  # `reason` was asked before
            for row, (inputs, each) in enumerate(zip(answered, of_rows, strict=True)):
                for name in each.statistic.modules:
                    merge(each.statistic.sums(name)[0], known.statistic.sums(name)[0])
                padding = answering.padding[row]
                norms = norms_of_row(pieces, row, padding, inputs, before=known.norms)
                nodes[row] |= {LLM: llm_node(each, llm, norms, inputs)}
        return Measured(answered, nodes, "one", logprob, SHARED)

    def _prefix(self, row: Inputs) -> tuple[ImagePrefix, PrefixMeasurement]:
        """A row's prefix and its measurement, which is kept with its keys and values."""
        types = row.types.ids[0, : shared_tokens(row)].tobytes()
        settings = (row.types.names, types, self.passes.options, *self.passes.stacks)

        def make() -> CachedPrefix:
            cached, measured = self._measured(row)
            cached.notes[settings] = measured
            return cached

        cached = self.questions.cache.prefixes.get(self.questions.key(row), make)
        if settings not in cached.notes:  # it was computed for something else
            cached.notes[settings] = self._measured(row)[1]
        return cached.prefix, cached.notes[settings]

    def _measured(self, row: Inputs) -> tuple[CachedPrefix, PrefixMeasurement]:
        subject, options, stacks = self.passes.subject, self.passes.options, self.passes.stacks
        types, length = row.types, shared_tokens(row)
        ids, vision = types.ids[:, :length], types.vision[:, :length]
        query_ids = np.where(vision, PADDING, ids) if options.rows == "text" else ids
        statistic = AttentionStatistic(types.names, ids, query_ids, vision, **options.of_statistic)
        others = {name: stack for name, stack in stacks.items() if name != LLM}
        statistics = stack_statistics(subject, row, others, options)
        observe = statistic if LLM in stacks else None
        with observed(subject, stacks, statistics), layer_norms(self.questions.stack) as norms:
            cached = self.questions.computed_prefix(row, observe)
        (nodes,) = nodes_of(statistics, others, 1)
        return cached, PrefixMeasurement(statistic, norms, nodes)


class SharedSamples:
    """Which of some samples are measured on shared prefixes. order: the samples' positions, those
    with the same images one after the other.
    """

    def __init__(self, passes: SharedPasses, samples: Sequence[Sample]):
        found = groups(samples)
        self.passes = passes
        self.order = [position for group in found for position in group]
        self.together = {samples[at].id for group in found if len(group) > 1 for at in group}

    def prefix_of(self, sample: Sample, inputs: Inputs) -> tuple[str, str]:
        """For `batches`: equal for rows that share a prefix, "" for one that is measured alone; and
        what the record of that says.
        """
        is_asked_again = sample.id in self.together
        if not shared_tokens(inputs) or not (is_asked_again or self.passes.is_kept(inputs)):
            return "", ALONE
        if reason := self.passes.reason(inputs):
            return "", f"{ALONE}: {reason}"
        return self.passes.key(inputs), ""
