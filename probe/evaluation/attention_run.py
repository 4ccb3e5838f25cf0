"""A measurement of attention over the samples of a benchmark, as a resumable run.

attention = AttentionRun(subject, task)
record = attention.results(attention.run("probe-out/attention"))      # one record of all samples
"""

from collections.abc import Sequence
from typing import Any

import xarray as xr

from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.evaluation.run_identity import fingerprint
from probe.evaluation.sample_run import SampleRun
from probe.evaluation.task import BenchmarkTask
from probe.interventions.sweep.result_table import gold_answer
from probe.measures.attention.expected_memory import expected_memory
from probe.measures.attention.measure import measure_samples
from probe.measures.attention.memory_plan import require_maps
from probe.measures.attention.stack_statistic import MeasureOptions
from probe.records import validate
from probe.records.compact import without_pixels
from probe.records.provenance import RunFingerprint
from probe.records.run_directory import RunDirectory
from probe.records.schema import ROOT
from probe.subject.image_questions import ImageQuestions
from probe.subject.prefix_cache import CACHE_GB
from probe.subject.subject import Subject

FIRST_SAMPLES = 20  # among which one is looked for that can be encoded, for the estimate


class AttentionRun(SampleRun):
    """Records of a benchmark's samples, as `measure` makes them, without pixels; with the score of
    each answer, and the gold answer.

    Where each patch is, and what it receives, is kept with `maps` only: it is most of a record.
    """

    batch = 16  # samples between two checkpoints; those about one image are answered together

    def __init__(
        self,
        subject: Subject,
        task: BenchmarkTask,
        *,
        max_new_tokens: int = 32,
        types: str = "paper",
        maps: bool = False,
        contribution: bool = False,
        cache_gb: float = CACHE_GB,
    ):
        """types, maps, contribution, max_new_tokens: as in `measure_samples`. cache_gb: of keys and
        values of images, kept for the next questions about them.
        """
        self.questions = ImageQuestions(subject, cache_gb)
        self.subject = subject
        self.task = task
        self.types = types
        self.maps = maps
        self.max_new_tokens = max_new_tokens
        self.contribution = contribution

    @property
    def samples(self) -> Sequence[Sample]:
        return self.task.samples

    def fingerprint(self) -> RunFingerprint:
        plan = {"verb": "attention", "types": self.types, "maps": self.maps}
        if self.contribution:  # older runs do not name it
            plan["contribution"] = True
        generation = {"max_new_tokens": self.max_new_tokens}
        return fingerprint(self.subject, self.task, plan, generation)

    def estimate(self, samples: Sequence[Sample]) -> list[str]:
        """What the maps of these samples take, as the first one that can be encoded has it. Raises
        ProbeError where the maps of the samples between two checkpoints are above the limit.
        """
        if not self.maps:
            return []
        options = MeasureOptions(maps=True, contribution=self.contribution)
        for sample in samples[:FIRST_SAMPLES]:
            images = list(sample.images) or None
            try:
                plan = expected_memory(
                    self.subject,
                    images,
                    sample.question,
                    types=self.types,
                    new_tokens=self.max_new_tokens,
                    options=options,
                )
            except ProbeError:
                continue
            at_once = min(self.batch, len(samples))
            require_maps(plan.maps * at_once, at_once)
            size = sum(plan.record.values()) * len(samples) / 2**20
            maps = plan.maps * len(samples) / 2**20
            many = f"{len(samples)} questions"
            return [f"at most {size:,.0f} MB of results for {many}, maps {maps:,.0f} MB of it"]
        return []

    def __call__(self, samples: list[Sample]) -> xr.DataTree:
        options: dict[str, Any] = {"types": self.types, "maps": self.maps}
        options["contribution"] = self.contribution
        record = measure_samples(
            self.subject,
            samples,
            stacks=self._stacks,
            max_new_tokens=self.max_new_tokens,
            share=self.questions,
            progress=False,
            **options,
        )
        by_id = {sample.id: sample for sample in samples}
        compact = without_pixels(record, by_id, keep_patches=self.maps)
        compact.dataset = compact.to_dataset().assign(self._judged(record, samples))
        return compact

    def _judged(self, record: xr.DataTree, samples: Sequence[Sample]) -> dict[str, xr.Variable]:
        """What the benchmark says of each answer."""
        answers = record.to_dataset()["response"].values.tolist()
        values = {
            "gold": [gold_answer(sample) for sample in samples],
            "kind": [str(sample.meta.get("kind", "")) for sample in samples],
            "correct": [
                self.task.score(answer, sample)
                for answer, sample in zip(answers, samples, strict=True)
            ],
        }
        return {
            name: ROOT[name].labelled("attention", name, value) for name, value in values.items()
        }

    @property
    def _stacks(self) -> list[str] | None:
        """All stacks, but the LLM alone where some samples have no image, and so no encoder."""
        with_image = {bool(sample.images) for sample in self.samples}
        return ["llm"] if with_image == {True, False} else None

    def results(self, run: RunDirectory) -> xr.DataTree:
        """All of a run as one record, in the order of the benchmark."""
        return validate(super().results(run))
