"""Models and token reducers side by side: on the same questions how right, with how many vision
tokens, at what cost.

    methods = [
        Method("all tokens", subject),
        Method("VisionZip 11 %", subject, (VisionZip(54, 10),)),
        Method("LLaVA-Mini", probe.load("tiny-llava-mini")),
    ]
    comparison = Comparison(methods, BenchmarkTask.read("shapes", limit=300))
    run = comparison.run("probe-out/reduce")       # resumable: the same line again goes on
    answers = comparison.results(run)              # (sample, case): answer, correct, tokens a layer
    costs = comparison.costs(answers, repeats=5)   # operations, cache, time to the first token
    method_scores(answers)                         # a row a method, with intervals over images
    plots.reductions(answers, costs)

The others are compared with the first method.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int

from probe.data.image import open_image
from probe.data.sample import Sample
from probe.data.sample_groups import groups
from probe.errors import ProbeError
from probe.evaluation.run_identity import fingerprint
from probe.evaluation.sample_run import SampleRun, about
from probe.evaluation.task import BenchmarkTask
from probe.hooks.block_threads import model_block
from probe.hooks.model_structure import stacks
from probe.measures.cost import cost, join
from probe.measures.cost.prompt_shape import tiles
from probe.measures.cost.timing import measure_prefill
from probe.records.concat import join as joined_samples
from probe.records.provenance import RunFingerprint
from probe.reducers import ReductionStage, reduced
from probe.subject.image_questions import ImageQuestions
from probe.subject.inputs import Inputs
from probe.subject.prefix_cache import CACHE_GB
from probe.subject.processed_images import ProcessedImages
from probe.subject.subject import Subject

TIMED = 3  # images that the clock is run on


@dataclass(frozen=True)
class Method:
    """A subject under some reducers, or under none."""

    name: str
    subject: Subject
    reducers: tuple[Any, ...] = ()
    family: str = ""  # those of one family are one line in figures
    budget: int = 0  # vision tokens that were asked for; 0: none were

    @model_block
    def applied(self) -> Iterator[list[ReductionStage]]:
        if not self.reducers:
            yield []
            return
        with reduced(self.subject, *self.reducers) as stages:
            yield stages

    @property
    def depth(self) -> int:
        """Layers of the LLM."""
        return len(stacks(self.subject.model)["llm"].layers)

    def encode(self, sample: Sample, known: ProcessedImages | None = None) -> Inputs:
        return self.subject.encode(list(sample.images), sample.question, known=known)

    def answers(
        self, samples: Sequence[Sample], max_new_tokens: int, questions: ImageQuestions
    ) -> list["Answer"]:
        """The answer to each sample. Those about one image share its prefix where that is exact.

        questions: of this subject, with the prefixes that are kept.
        """
        found: dict[int, Answer] = {}
        with self.applied() as stages:
            for group in groups(samples):
                known = ProcessedImages()
                rows = [self.encode(samples[at], known) for at in group]
                if len(group) > 1 and not questions.reason(rows[0]):
                    answers = self._on_one_prefix(rows, max_new_tokens, questions)
                    found |= dict(zip(group, answers, strict=True))
                    continue
                for at, row in zip(group, rows, strict=True):
                    (ids,) = self.subject.generate_ids(row, max_new_tokens)
                    found[at] = Answer.of(row, ids, stages, self.depth)
        return [found[at] for at in range(len(samples))]

    def _on_one_prefix(
        self, rows: Sequence[Inputs], max_new_tokens: int, questions: ImageQuestions
    ) -> list["Answer"]:
        batches: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            key = questions.batch_key(row)
            batches.setdefault(key, []).append(index)
        answers: dict[int, Answer] = {}
        for batch in batches.values():
            asked = [rows[index] for index in batch]
            ids_of_batch = questions.generate(asked, max_new_tokens)
            for index, row, ids in zip(batch, asked, ids_of_batch, strict=True):
                answers[index] = Answer.of(row, ids, (), self.depth)
        return [answers[index] for index in range(len(rows))]


@dataclass(frozen=True)
class Answer:
    """An answer, the vision tokens that each LLM layer had, and the text tokens of the prompt."""

    text: str
    vision_tokens: Int[np.ndarray, " layer"]
    text_tokens: int

    @classmethod
    def of(cls, inputs: Inputs, ids: Any, stages: Sequence[ReductionStage], depth: int) -> "Answer":
        in_prompt = int(inputs.types.vision.sum())
        text_tokens = int((inputs.types.role >= 0).sum()) - in_prompt
        by_layer = tokens_by_layer(in_prompt, stages, depth)
        return cls(inputs.vocabulary.words(ids), by_layer, text_tokens)


def tokens_by_layer(
    before: int, stages: Sequence[ReductionStage], depth: int
) -> Int[np.ndarray, " layer"]:
    """Vision tokens of one prompt in each layer: `before`, and after each stage what it left.

    >>> tokens_by_layer(36, [], depth=4)
    array([36, 36, 36, 36])
    """
    starts = [0, *(stage.layer for stage in stages), depth]
    left = [before, *(int(stage.left.sum()) for stage in stages)]
    return np.repeat(left, [stop - start for start, stop in pairwise(starts)])


class Comparison(SampleRun):
    """Methods, and the questions that all of them answer."""

    batch = 8  # samples between two checkpoints; those about one image are answered together

    def __init__(
        self,
        methods: Sequence[Method],
        task: BenchmarkTask,
        *,
        max_new_tokens: int = 32,
        cache_gb: float = CACHE_GB,
    ):
        """cache_gb: of keys and values of images, kept for the next questions about them.

        Raises ProbeError for no method, two of one name, questions without images, and a reducer
        that its model can't take.
        """
        names = [method.name for method in methods]
        if not names or len(set(names)) < len(names):
            got = ", ".join(names) or "none"
            raise ProbeError("reduce", expected="methods with different names", got=got)
        if not task.with_images:
            got = f"none in {task.benchmark.name}"
            raise ProbeError("reduce", expected="questions about images", got=got)
        for method in methods:  # a reducer that the model can't take is refused before any work
            with method.applied():
                pass
        self.methods = tuple(methods)
        self.task = task
        self.max_new_tokens = max_new_tokens
        subjects = {id(method.subject): method.subject for method in methods}
        share = cache_gb / len(subjects)
        self.questions = {at: ImageQuestions(each, share) for at, each in subjects.items()}

    def fingerprint(self) -> RunFingerprint:
        texts = {}
        for method in self.methods:
            facts = method.subject.provenance()
            setting = " ".join(facts[name] for name in ("model", "weights", "dtype", "attention"))
            texts[method.name] = f"{setting} {method.reducers}"
        plan = {"verb": "reduce", "methods": texts}
        generation = {"max_new_tokens": self.max_new_tokens}
        return fingerprint(self.methods[0].subject, self.task, plan, generation)

    def __call__(self, samples: list[Sample]) -> xr.Dataset:
        """Some samples by every method."""
        by_method = []
        for method in self.methods:
            questions = self.questions[id(method.subject)]
            by_method.append(method.answers(samples, self.max_new_tokens, questions))
        tables = [
            self._table(sample, answers)
            for sample, answers in zip(samples, zip(*by_method, strict=True), strict=True)
        ]
        joined: Any = joined_samples(tables)
        return joined

    def _table(self, sample: Sample, of_methods: Sequence[Answer]) -> xr.Dataset:
        """One sample by every method."""
        depth = max(method.depth for method in self.methods)
        vision_counts = np.full((len(self.methods), depth), np.nan, np.float32)
        for row, answer in zip(vision_counts, of_methods, strict=True):
            row[: len(answer.vision_tokens)] = answer.vision_tokens
        answers = [answer.text for answer in of_methods]
        text_counts = [answer.text_tokens for answer in of_methods]
        correct = [self.task.score(answer, sample) for answer in answers]
        by_case = ("sample", "case")
        variables: dict[str, Any] = {
            "answer": (by_case, np.array([answers], dtype=object)),
            "correct": (by_case, np.array([correct], np.float32)),
            "vision_tokens": ((*by_case, "layer"), vision_counts[None]),
            "text_tokens": (by_case, np.array([text_counts], np.float32)),
        }
        toy = any(method.subject.toy for method in self.methods)
        attrs = self.methods[0].subject.provenance()
        attrs |= {"benchmark": self.task.benchmark.name, "toy": toy}
        return about(sample).assign(variables).assign_coords(self._cases()).assign_attrs(attrs)

    def _cases(self) -> dict[str, Any]:
        names = np.array([method.name for method in self.methods], dtype=object)
        families = np.array([method.family for method in self.methods], dtype=object)
        budgets = np.array([method.budget for method in self.methods])
        return {"case": names, "family": ("case", families), "budget": ("case", budgets)}

    def costs(self, answers: xr.Dataset, repeats: int = 5) -> xr.Dataset:
        """What a prompt of the usual length costs each method: counted, and with `repeats` also
        measured.

        Counted with the mean number of vision tokens of each layer; the clock runs on the first
        `TIMED` images, from pixels to the first token, the methods in turn in each repeat, so that
        a busy machine is busy for all of them.
        """
        counted = join([self._counted(method, answers) for method in self.methods])
        if not repeats:
            return counted
        return counted.merge(self._measured(repeats)).assign_attrs(counted.attrs)

    def _counted(self, method: Method, answers: xr.Dataset) -> xr.Dataset:
        of_method = answers.sel(case=method.name)
        by_layer = of_method["vision_tokens"].mean("sample").values[: method.depth]
        return cost(
            method.subject,
            by_layer.round().astype(int).tolist() if method.reducers else None,
            round(float(of_method["text_tokens"].median())),
            rows="needed",
            name=method.name,
            resolution=self._median_size() if tiles(method.subject.model.config) else None,
        )

    def _median_size(self) -> tuple[int, int]:
        """Height and width of a typical image, in pixels."""
        exif = self.methods[0].subject.exif
        sizes = [open_image(sample.images[0], exif).size for sample in self.samples[:TIMED]]
        width, height = sorted(sizes)[len(sizes) // 2]
        return height, width

    def _measured(self, repeats: int) -> xr.Dataset:
        latency = np.full((len(self.methods), TIMED * repeats), np.nan)
        memory = np.zeros((len(self.methods), 2))
        for at, sample in enumerate(self.samples[:TIMED]):
            encoded: dict[str, Any] = {}
            for method in self.methods:
                with method.applied():
                    encoded[method.name] = method.encode(sample)
            for repeat in range(repeats):
                for row, method in enumerate(self.methods):
                    with method.applied():
                        model = method.subject.model
                        inputs = encoded[method.name]
                        (seconds,), peak = measure_prefill(model, inputs, 1)
                    latency[row, at * repeats + repeat] = seconds
                    memory[row] = np.maximum(memory[row], peak)
        moments = np.array(["before", "peak"], dtype=object)
        return xr.Dataset(
            {"latency": (("case", "repeat"), latency), "memory": (("case", "moment"), memory)},
            {"case": self._cases()["case"], "moment": moments},
        )
