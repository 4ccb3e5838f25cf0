"""Models and token reducers side by side: on the same questions how right, with how many vision
tokens, at what cost.

    methods = [
        Method("all tokens", subject),
        Method("VisionZip 11 %", subject, (VisionZip(54, 10),)),
        Method("LLaVA-Mini", probe.load("tiny-llava-mini")),
    ]
    comparison = Comparison(methods, Task.read("shapes", limit=300))
    run = comparison.run("probe-out/reduce")               # resumable: the same line again goes on
    answers = compared(run, comparison.task)               # (sample, case): answer, correct, tokens in each LLM layer
    costs = comparison.costs(answers, repeats=5)           # operations, cache, time to the first token
    scores(answers)                                        # `scores.py`: a row a method, with intervals over images
    plots.reductions(answers, costs)

The first method is what the others are compared with.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int

from probe.data.image import open_image
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.evaluation.attention_run import about
from probe.evaluation.run_identity import fingerprint, weights_digest
from probe.evaluation.task import BenchmarkTask
from probe.hooks.block_threads import model_block
from probe.hooks.model_structure import stacks
from probe.measures.cost import cost, join
from probe.measures.cost.prompt_shape import tiles
from probe.measures.cost.timing import measure_prefill
from probe.records.provenance import RunFingerprint
from probe.records.run_directory import RunDirectory, run_samples
from probe.reducers import ReductionStage, reduced
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject

TIMED = 3  # images that the clock is run on


@dataclass(frozen=True)
class Method:
    """A subject under some reducers, or under none."""

    name: str
    subject: Subject
    reducers: tuple[Any, ...] = ()
    family: str = ""  # those of one family are one line in figures

    @model_block
    def at_work(self) -> Iterator[list[ReductionStage]]:
        if not self.reducers:
            yield []
            return
        with reduced(self.subject, *self.reducers) as stages:
            yield stages

    @property
    def depth(self) -> int:
        """Layers of the LLM."""
        return len(stacks(self.subject.model)["llm"].layers)

    def encode(self, sample: Sample) -> Inputs:
        return self.subject.encode(list(sample.images), sample.question)

    def answer(
        self, sample: Sample, max_new_tokens: int
    ) -> tuple[str, Inputs, Int[np.ndarray, " layer"]]:
        """What it says, the prompt, and the vision tokens that each LLM layer had."""
        with self.at_work() as stages:
            inputs = self.encode(sample)
            (ids,) = self.subject.generate_ids(inputs, max_new_tokens)
        text = inputs.vocabulary.words(ids)
        return text, inputs, tokens_by_layer(int(inputs.types.vision.sum()), stages, self.depth)


def tokens_by_layer(
    before: int, stages: Sequence[ReductionStage], depth: int
) -> Int[np.ndarray, " layer"]:
    """Vision tokens of one prompt in each layer: `before` of them, and after each stage what it
    left.

    >>> tokens_by_layer(36, [], depth=4)
    array([36, 36, 36, 36])
    """
    starts = [0, *(stage.layer for stage in stages), depth]
    left = [before, *(int(stage.left.sum()) for stage in stages)]
    return np.repeat(left, [stop - start for start, stop in pairwise(starts)])


class Comparison:
    """Methods, and the questions that all of them answer."""

    def __init__(self, methods: Sequence[Method], task: BenchmarkTask, *, max_new_tokens: int = 32):
        """Raises ProbeError for no method, two of one name, and questions without images."""
        names = [method.name for method in methods]
        if not names or len(set(names)) < len(names):
            raise ProbeError(
                "reduce", expected="methods with different names", got=", ".join(names) or "none"
            )
        if not task.with_images:
            raise ProbeError(
                "reduce", expected="questions about images", got=f"none in {task.benchmark.name}"
            )
        self.methods, self.task, self.max_new_tokens = tuple(methods), task, max_new_tokens

    def fingerprint(self) -> RunFingerprint:
        """What must be equal to go on."""
        told = {}
        for method in self.methods:
            about = method.subject.provenance()
            weights = weights_digest(method.subject.model)
            told[method.name] = (
                f"{about['model']} {weights} {about['dtype']} {about['attention']} {method.reducers}"
            )
        return fingerprint(
            self.methods[0].subject,
            self.task,
            {"verb": "reduce", "methods": told},
            {"max_new_tokens": self.max_new_tokens},
        )

    def run(
        self, folder: str | Path, progress: Callable[[int], None] | None = None
    ) -> RunDirectory:
        """Asks what is still to be asked. Raises ProbeError where the folder holds another run; see
        `run_samples`.
        """
        run = RunDirectory.open(folder, self.fingerprint())
        run_samples(run, self.task.with_images, self, progress=progress)
        return run

    def __call__(self, samples: list[Sample]) -> xr.Dataset:
        """One sample (a list, as `run_samples` has it) by every method."""
        (sample,) = samples
        depth = max(method.depth for method in self.methods)
        answers, counts, words = [], np.full((len(self.methods), depth), np.nan, np.float32), []
        for row, method in zip(counts, self.methods, strict=True):
            answer, inputs, tokens = method.answer(sample, self.max_new_tokens)
            row[: len(tokens)] = tokens
            answers.append(answer)
            words.append(float((inputs.types.role >= 0).sum() - inputs.types.vision.sum()))
        correct = np.array([self.task.score(answer, sample) for answer in answers], np.float32)
        per_case = ("sample", "case")
        variables: dict[str, Any] = {
            "answer": (per_case, np.array([answers], dtype=object)),
            "correct": (per_case, correct[None]),
            "vision_tokens": ((*per_case, "layer"), counts[None]),
            "text_tokens": (per_case, np.array([words], np.float32)),
        }
        attrs = {"benchmark": self.task.benchmark.name, "toy": _toy(self.methods)}
        return about(sample).assign(variables).assign_coords(self._cases()).assign_attrs(attrs)

    def _cases(self) -> dict[str, Any]:
        return {
            "case": np.array([method.name for method in self.methods], dtype=object),
            "family": ("case", np.array([method.family for method in self.methods], dtype=object)),
        }

    def costs(self, answers: xr.Dataset, repeats: int = 5) -> xr.Dataset:
        """What a prompt of the usual length costs each method: counted, and with `repeats` also
        measured.

        Counted with the mean number of vision tokens of each layer; the clock runs on the first
        `TIMED` images, from pixels to the first token, the methods in turn so that a busy machine
        is busy for all of them.
        """
        found = []
        for method in self.methods:
            asked = answers.sel(case=method.name)
            tokens = (
                asked["vision_tokens"]
                .mean("sample")
                .values[: method.depth]
                .round()
                .astype(int)
                .tolist()
            )
            size = _median_size(self.task) if tiles(method.subject.model.config) else None
            reduces = None if not method.reducers else tokens
            words = round(float(asked["text_tokens"].median()))
            found.append(
                cost(
                    method.subject, reduces, words, rows="needed", name=method.name, resolution=size
                )
            )
        counted = join(found)
        return (
            counted
            if not repeats
            else counted.merge(self._measured(repeats)).assign_attrs(counted.attrs)
        )

    def _measured(self, repeats: int) -> xr.Dataset:
        latency = np.full((len(self.methods), TIMED * repeats), np.nan)
        memory = np.zeros((len(self.methods), 2))
        for at, sample in enumerate(self.task.with_images[:TIMED]):
            for row, method in enumerate(self.methods):
                with method.at_work():
                    seconds, most = measure_prefill(
                        method.subject.model, method.encode(sample), repeats
                    )  # pyright: ignore
                latency[row, at * repeats : (at + 1) * repeats] = seconds
                memory[row] = np.maximum(memory[row], most)
        return xr.Dataset(
            {"latency": (("case", "repeat"), latency), "memory": (("case", "moment"), memory)},
            {"case": self._cases()["case"], "moment": np.array(["before", "peak"], dtype=object)},
        )


def compared(run: RunDirectory, task: BenchmarkTask) -> xr.Dataset:
    """All answers of a run, in the order of the benchmark. Raises ProbeError when no sample is
    finished.
    """
    loaded = run.load([sample.id for sample in task.benchmark.samples])
    assert isinstance(loaded, xr.Dataset)
    return loaded


def _median_size(task: BenchmarkTask) -> tuple[int, int]:
    sizes = [open_image(sample.images[0]).size for sample in task.with_images[:TIMED]]
    width, height = sorted(sizes)[len(sizes) // 2]
    return height, width


def _toy(methods: Sequence[Method]) -> str:
    return str(any(method.subject.toy for method in methods)).lower()
