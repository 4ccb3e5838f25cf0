"""Subject x intervention x benchmark -> run: what is measured over many samples, resumable and
crash-safe.

    task = Task.read("gqa", "data/gqa", limit=500)
    dropping = Dropping(subject, task, {"mask": windows(4), "swap": windows(4)})
    print(dropping.estimate())
    run = dropping.run("probe-out/drop")                  # the same line again goes on where it was interrupted
    effects(results(run, task))                           # accuracy of every case, with intervals

A part of such a run is a tree: a node for each mode of dropping (a table of `drop_sweep`), and
one with the attention that text gives to vision, from the same samples. A part of an attention run
is a record.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.evaluation.attention_run import Progress, _without_counts, about, attention_to_vision
from probe.evaluation.drop_effects import ATTENTION
from probe.evaluation.run_identity import fingerprint, weights_digest
from probe.evaluation.task import BenchmarkTask
from probe.interventions.layer_target import Names, as_names
from probe.interventions.sweep import Sweep
from probe.interventions.sweep.layer_sets import Cases
from probe.interventions.sweep.visibility import SWEEP_MODES
from probe.measures.attention.measure import measure_samples
from probe.records.provenance import RunFingerprint
from probe.records.run_directory import RunDirectory, run_samples
from probe.subject.subject import Subject


class Dropping:
    """What `probe drop` measures of each sample: its answers in every case of every mode, and
    attention.
    """

    def __init__(
        self,
        subject: Subject,
        task: BenchmarkTask,
        modes: Mapping[str, Cases],
        *,
        stack: str = "llm",
        queries: Names | None = None,
        max_new_tokens: int = 32,
        attention: bool = True,
    ):
        """`modes`: each with its cases, as in `drop_sweep`. Raises ProbeError as that does."""
        if unknown := [mode for mode in modes if mode not in SWEEP_MODES]:
            raise ProbeError(
                "drop", expected=f"modes of {', '.join(SWEEP_MODES)}", got=repr(unknown[0])
            )
        if not task.with_images:
            raise ProbeError(
                "drop", expected="questions about images", got=f"none in {task.benchmark.name}"
            )
        self.subject, self.task, self.max_new_tokens, self.attention = (
            subject,
            task,
            max_new_tokens,
            attention,
        )
        self.weights, self.stack, self.queries = weights_digest(subject.model), stack, queries
        self.sweeps: dict[str, Sweep] = {}
        memory = None  # the modes share image prefixes
        for mode, cases in modes.items():
            sweep = Sweep(
                subject,
                cases,
                mode,
                stack,
                queries=queries,
                max_new_tokens=max_new_tokens,
                score=task.score,
                memory=memory,
            )
            self.sweeps[mode], memory = sweep, sweep.memory

    def run(
        self,
        folder: str | Path,
        progress: Progress | None = None,
        *,
        samples: Sequence[Sample] | None = None,
        worker: str = "0",
    ) -> RunDirectory:
        """Measures what is still to do. Raises ProbeError where the folder holds another run; see
        `run_samples`.

        Several workers, each with a name, may share the folder: give each `samples` of its own.
        """
        run = RunDirectory.open(folder, self.fingerprint(), worker)
        run_samples(
            run, self.task.with_images if samples is None else samples, self, progress=progress
        )
        return run

    def fingerprint(self) -> RunFingerprint:
        """What must be equal to go on."""
        modes = {
            mode: {case: sorted(layers) for case, layers in sweep.cases.items()}
            for mode, sweep in self.sweeps.items()
        }
        plan: dict[str, Any] = {"verb": "drop", "modes": modes, "attention": self.attention}
        if self.stack != "llm":
            plan |= {"stack": self.stack, "queries": "+".join(as_names(self.queries or ()))}
        return fingerprint(self.subject, self.task, plan, {"max_new_tokens": self.max_new_tokens})

    def estimate(self, samples: Sequence[Sample] | None = None) -> list[str]:
        """What these samples (by default all) will cost, a line a mode. An upper bound, as
        answers end.
        """
        samples = list(self.task.with_images if samples is None else samples)
        readable = next(
            (at for at, sample in enumerate(samples[:100]) if self._can_encode(sample)), None
        )
        if readable is None:
            return []
        samples = [samples[readable], *samples[:readable], *samples[readable + 1 :]]
        costs = {
            name: sweep.estimate(samples).removeprefix("drop_sweep: ")
            for name, sweep in self.sweeps.items()
        }
        return [f"{name}: {cost}" for name, cost in costs.items()]

    def _can_encode(self, sample: Sample) -> bool:
        try:
            self.subject.encode(list(sample.images), sample.question)
        except ProbeError:
            return False
        return True

    def __call__(self, samples: list[Sample]) -> xr.DataTree:
        """One sample (a list, as `run_samples` has it) in every case of every mode."""
        (sample,) = samples
        donor = self.task.donor(sample, same_size=self.subject.aspect == "anyres")
        nodes = {name: _without_counts(sweep(sample, donor)) for name, sweep in self.sweeps.items()}
        if self.attention:
            record = measure_samples(
                self.subject,
                [sample],
                stacks=[self.stack],
                rows="text",
                max_new_tokens=self.max_new_tokens,
            )
            nodes[ATTENTION] = attention_to_vision(record, self.stack)
        told = self.subject.provenance() | {
            "weights": self.weights,
            "benchmark": self.task.benchmark.name,
        }
        return xr.DataTree.from_dict({"/": about(sample).assign_attrs(told), **nodes})


def results(run: RunDirectory, task: BenchmarkTask) -> xr.DataTree:
    """All of a drop run, in the order of the benchmark. Raises ProbeError when no sample is
    finished.
    """
    loaded = run.load([sample.id for sample in task.benchmark.samples])
    assert isinstance(loaded, xr.DataTree)
    return loaded


def predictions(table: xr.Dataset, case: str) -> dict[str, str]:
    """Sample id -> the answer in a case."""
    return dict(
        zip(
            table["sample"].values.tolist(),
            table["answer"].sel(case=case).values.tolist(),
            strict=True,
        )
    )
