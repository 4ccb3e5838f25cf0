"""A run over the questions of a benchmark: something measured on each sample, in a run directory.

class Counting(SampleRun):
    def fingerprint(self): ...                 # what must be equal to go on with the run
    def __call__(self, samples): ...           # a dataset, or a tree, of these samples
counting = Counting(...)
run = counting.run("probe-out/count")          # resumable: the same line again goes on
counting.results(run)                          # all of it, in the order of the benchmark
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from probe.data.sample import Sample
from probe.evaluation.task import BenchmarkTask
from probe.interventions.sweep.result_table import gold_answer
from probe.records.provenance import RunFingerprint
from probe.records.run_directory import RunDirectory
from probe.records.run_work import run_samples
from probe.subject.subject import Subject
from probe.subject.token_grid import depends_on_size

Progress = Callable[[int], None]
OF_SAMPLES = ("image", "kind", "unit", "rotations")  # of `meta`: what tables are grouped by


class SampleRun(ABC):
    """Measures the samples of a task, `batch` of them at a time."""

    task: BenchmarkTask
    batch = 1

    @property
    def samples(self) -> Sequence[Sample]:
        """What is measured: by default the questions that come with an image."""
        return self.task.with_images

    @abstractmethod
    def fingerprint(self) -> RunFingerprint:
        """What must be equal to go on with a run."""

    @abstractmethod
    def __call__(self, samples: list[Sample]) -> xr.Dataset | xr.DataTree:
        """The results of at most `batch` samples."""

    def run(
        self,
        folder: str | Path | RunDirectory,
        progress: Progress | None = None,
        *,
        samples: Sequence[Sample] | None = None,
        worker: str = "0",
        shard: str | None = None,
    ) -> RunDirectory:
        """Measures what is still to do, together with any other processes that do the same in this
        folder; see `run_samples`. Raises ProbeError where the folder holds another run.
        """
        run = folder
        if not isinstance(run, RunDirectory):
            run = RunDirectory.open(run, self.fingerprint(), worker)
        run.note(data=self.task.folder)
        asked = self.samples if samples is None else samples
        run_samples(run, asked, self, batch=self.batch, progress=progress, shard=shard)
        return run

    def merged(self, run: RunDirectory) -> Any:
        """The results of all samples, written together in the order in which they are measured and
        left on the disk: see `RunDirectory.merged`.
        """
        run.compact([sample.id for sample in self.samples])
        return run.merged()

    def results(self, run: RunDirectory) -> Any:
        """The results of all samples, as one dataset or tree: see `load_run`."""
        return load_run(run, self.task)


def load_run(run: RunDirectory, task: BenchmarkTask) -> Any:
    """All of a run over a task, in the order of the benchmark. Raises ProbeError when no sample is
    finished.
    """
    return run.load([sample.id for sample in task.benchmark.samples])


def donor_of(task: BenchmarkTask, subject: Subject, sample: Sample) -> Any:
    """The images that replace the sample's own for this subject; None if there are none."""
    same_size = depends_on_size(subject)
    return task.donor(sample, same_size, subject.exif)


def about(sample: Sample) -> xr.Dataset:
    """What figures and tables need to know of a sample, as text: one variable each."""
    texts = {name: str(sample.meta[name]) for name in OF_SAMPLES if name in sample.meta}
    texts["question"] = str(sample.question)
    texts["gold"] = gold_answer(sample)
    variables = {}
    for name, text in texts.items():
        variables[name] = ("sample", np.array([text], dtype=object))
    ids = np.array([sample.id], dtype=object)
    return xr.Dataset(variables, coords={"sample": ids})
