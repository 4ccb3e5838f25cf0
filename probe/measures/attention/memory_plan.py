"""What a measurement keeps and holds, in bytes, known from shapes before anything is measured.

    plan = memory_plan(subject, [subject.encode(image, question, response)])
    plan.record["llm"]       # bytes of the LLM's variables in the record, of all these samples
    plan.held                # of sums and counts, until the samples are measured
    plan.peak                # the most beside the model and its own forward

None of it has a term in the square of the sequence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from probe.errors import ProbeError
from probe.hooks.layer_stack import LayerStack
from probe.hooks.model_structure import stacks
from probe.measures.attention.stack_queries import predicting, stack_statistics
from probe.measures.attention.stack_statistic import (
    DEFAULT_OPTIONS,
    MeasureOptions,
    StackStatistic,
)
from probe.measures.attention.statistic import WAITING_BYTES
from probe.measures.attention.tensor_sums import block_elements, free_memory
from probe.records.schema import STACK
from probe.subject.inputs import Inputs, collate
from probe.subject.subject import Subject

SINGLE, DOUBLE, POINTER = 4, 8, 8  # bytes of a number, and of a reference to a text
MAPS_LIMIT = 2**30  # bytes of the maps of a measurement
BY_HEAD = ("mass", "share", "lift", "head_entropy", "head_entropy_ratio", "head_entropy_count")
BY_TYPE = ("entropy", "entropy_ratio", "entropy_count")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes. `record`: of each stack's variables, all samples together; `maps`: those of `maps`
    among them; `held`: sums and counts of a batch; `at_once`: what the call that needs most takes
    on top of it; `largest`: the record of the sample that has most.
    """

    record: dict[str, int]
    maps: int
    held: int
    at_once: int
    largest: int

    @property
    def peak(self) -> int:
        """The most that exists at a time beside the model and its own forward: while it runs, or
        when the sums become a record, a sample at a time and then all in one.
        """
        return self.held + max(self.at_once, sum(self.record.values()) + self.largest)

    @property
    def beside_model(self) -> int:
        """The most that lies where the model runs; records are made on the host."""
        return self.held + self.at_once


def memory_plan(
    subject: Subject,
    rows: Sequence[Inputs],
    measured_stacks: Mapping[str, LayerStack] | None = None,
    options: MeasureOptions = DEFAULT_OPTIONS,
) -> MemoryPlan:
    """The plan of one batch of encoded rows, measured in one forward. `measured_stacks`: by default
    all that the model has.
    """
    measured = stacks(subject.model) if measured_stacks is None else measured_stacks
    statistics = stack_statistics(subject, collate(rows, side="right"), measured, options)
    record, maps, held, at_once = {}, 0, 0, 0
    of_samples = [0] * len(rows)
    for name, made in statistics.items():
        shapes = _Shapes(made, measured[name], options)
        of_stack = [shapes.of_sample(sample) for sample in range(len(rows))]
        record[name] = sum(of_stack)
        of_samples = [before + more for before, more in zip(of_samples, of_stack, strict=True)]
        maps += sum(shapes.maps_of_sample(sample) for sample in range(len(rows)))
        held += shapes.held()
        at_once = max(at_once, shapes.at_once(subject.model.device))
    return MemoryPlan(record, maps, held, at_once, max(of_samples))


def require_memory(
    called: str,
    subject: Subject,
    rows: Sequence[Inputs],
    llm: LayerStack | None,
    options: MeasureOptions,
) -> None:
    """Raises ProbeError, before a batch runs, where the LLM's statistic of it does not fit beside
    the model into a GPU's memory. On a CPU nothing is checked.
    """
    free = free_memory(subject.model.device)
    if free is None or llm is None:
        return
    peak = memory_plan(subject, rows, {llm.name: llm}, options).beside_model
    if peak > free:
        raise ProbeError(
            called,
            expected=f"{peak / 2**20:.0f} MB free beside the model for {len(rows)} samples at once",
            got=f"{free / 2**20:.0f} MB on {subject.model.device}",
            fix="lower batch_tokens=, or leave out received_head and maps",
        )


def maps_size(
    llm: LayerStack | None, rows: Sequence[Inputs], maps: bool | str, new_tokens: int
) -> int:
    """Bytes of the largest `maps` of these rows, with answers of `new_tokens` still to come. Raises
    ProbeError without the LLM, whose maps they are.
    """
    if llm is None:
        raise ProbeError("measure", expected="the llm stack for maps", got="other stacks")
    config: Any = next(iter(llm.attention.values())).config
    heads = config.num_attention_heads if maps == "heads" else 1
    queries = [len(predicting(inputs.types)) + max(0, new_tokens - 1) for inputs in rows]
    keys = [inputs.types.vision.sum() for inputs in rows]
    cells = max(count * vision for count, vision in zip(queries, keys, strict=True))
    return int(SINGLE * len(llm.layers) * heads * cells)


def require_maps(size: int, samples: int) -> None:
    """Raises ProbeError where the maps of so many samples are above `MAPS_LIMIT`."""
    if size > MAPS_LIMIT:
        raise ProbeError(
            "measure",
            expected=f"maps of at most {MAPS_LIMIT / 2**20:.0f} MB",
            got=f"{size / 2**20:.0f} MB for {samples} samples",
            fix="measure fewer samples, a shorter response, or maps=True instead of 'heads'",
        )


def heads_of(module: nn.Module) -> int:
    """The query heads of an attention module."""
    config: Any = getattr(module, "config", None)
    for source, name in (
        (module, "num_heads"),
        (config, "num_attention_heads"),
        (config, "num_heads"),
    ):
        number = getattr(source, name, None)
        if isinstance(number, int):
            return number
    return 1


class _Shapes:
    """The sizes of everything that one stack's statistic keeps."""

    def __init__(self, made: StackStatistic, stack: LayerStack, options: MeasureOptions):
        self.made, self.options, self.stack = made, options, stack.name
        self.layers, self.modules = len(stack.modules), len(stack.attention)
        self.heads = max(map(heads_of, stack.attention.values()))
        self.by_head = len(BY_HEAD) + options.contribution

    def of_sample(self, sample: int) -> int:
        """A sample's variables in the record: float32 but for labels of keys."""
        queries, key_types = len(self.made.query_types), len(self.made.key_types)
        pairs = queries * key_types
        grid = self.made.grids[sample]
        in_a_layer = pairs * (self.heads * self.by_head + len(BY_TYPE)) + queries * len(grid)
        if self.options.received_head:
            in_a_layer += self.heads * queries * len(grid)
        if self.stack == "llm":
            in_a_layer += len(grid)  # `key_sink`
        # Counts of queries: pre-fusion's last layer has others than the rest.
        counts = (pairs + queries) * (self.layers if self.stack == "prefusion" else 1)
        numbers = self.layers * in_a_layer + counts + key_types
        labels = sum(
            STACK[name].labelled("measure", name, array[None]).nbytes
            for name, array in grid.variables("key").items()
        )
        return SINGLE * numbers + labels + self.maps_of_sample(sample)

    def maps_of_sample(self, sample: int) -> int:
        """The `maps` of a sample among them, with position and text of each of their tokens."""
        if self.made.map_queries is None:
            return 0
        tokens = len(self.made.map_queries[sample].positions)
        heads = self.heads if self.made.statistic.map_heads else 1
        of_token = SINGLE * self.layers * heads * len(self.made.grids[sample])
        return tokens * (of_token + SINGLE + POINTER)

    def held(self) -> int:
        """Sums of all modules and rows, in float64."""
        statistic = self.made.statistic
        types, of_layer = len(statistic.names), 0
        for row, vision in enumerate(statistic.vision):
            of_layer += types**2 * (self.heads * self.by_head + len(BY_TYPE))
            of_keys = types + self._map_tokens(row)
            if self.options.received_head:
                of_keys += types * self.heads
            of_layer += int(vision.sum()) * of_keys
        return DOUBLE * self.modules * of_layer

    def at_once(self, device: torch.device) -> int:
        """The sums of each query that wait to be summed over types, in all rows, those of one call
        more, and a block of scores and weights.
        """
        statistic = self.made.statistic
        types, (rows, width) = len(statistic.names), statistic.query_ids.shape
        of_query = self.heads * types * (SINGLE + DOUBLE + SINGLE * self.options.contribution)
        of_query += 2 * types * DOUBLE + types * SINGLE
        if self.options.received_head:
            of_query += types * self.heads * SINGLE
        most_tokens = max((self._map_tokens(row) for row in range(rows)), default=0)
        call = width * (of_query + most_tokens * SINGLE)
        block = 2 * SINGLE * block_elements(device)
        return rows * min(WAITING_BYTES, self.modules * call) + call + block

    def _map_tokens(self, row: int) -> int:
        """Axes of `maps` in front of its keys."""
        positions = self.made.statistic.map_positions
        heads = self.heads if self.made.statistic.map_heads else 1
        return len(positions[row]) * heads if len(positions) else 0
