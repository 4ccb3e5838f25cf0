"""Heads ablated, and layers patched, over the questions of a benchmark, as resumable runs.

heads = HeadRun(subject, task, mode="zero")
head_effects(heads.results(heads.run("probe-out/heads")))
patches = PatchRun(subject, pairs_task("colour", 40), corruption="given")
recovered(patches.results(patches.run("probe-out/patch")))
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import xarray as xr

from probe.data.rows import Benchmark
from probe.data.sample import Sample
from probe.data.sample_groups import groups
from probe.errors import ProbeError
from probe.evaluation.benchmarks import named
from probe.evaluation.run_identity import fingerprint
from probe.evaluation.sample_run import SampleRun, about, donor_of
from probe.evaluation.task import BenchmarkTask
from probe.interventions.sweep.result_table import gold_answer
from probe.measures.attention.measure import measure_samples
from probe.measures.causal.head_sweep import HeadSweep
from probe.measures.causal.patch_pairs import counterparts
from probe.measures.causal.patch_sweep import PatchSweep
from probe.models.tiny.scene_pairs import CHANGES, scene_pairs
from probe.records.head_effects import BESIDE
from probe.records.provenance import RunFingerprint
from probe.subject.prefix_cache import CACHE_GB
from probe.subject.subject import Subject


def pairs_task(change: str, count: int, seed: int = 0) -> BenchmarkTask:
    """So many drawn pairs as a benchmark: of one change, or of "all" in turn."""
    changes = CHANGES if change == "all" else (change,)
    each = -(-count // len(changes))
    by_change = [scene_pairs(each, name, seed) for name in changes]
    in_turn = [sample for drawn in zip(*by_change, strict=True) for sample in drawn]
    samples = tuple(in_turn[:count])
    return BenchmarkTask(
        named("shapes"), Benchmark("scene_pairs", f"{change}-{seed}", samples, (), ())
    )


class HeadRun(SampleRun):
    """What `probe heads` measures: the gold answer with each head ablated, about the sample's own
    image and another, and the attention of each head to vision.
    """

    batch = 8  # samples between two checkpoints; those about one image share its prefixes

    def __init__(
        self,
        subject: Subject,
        task: BenchmarkTask,
        *,
        mode: str = "zero",
        stack: str = "llm",
        control: bool = True,
        attention: bool = True,
        cache_gb: float = CACHE_GB,
    ):
        """Raises ProbeError as `head_sweep` does."""
        _require_images("heads", task)
        self.subject = subject
        self.task = task
        self.control = control
        self.attention = attention
        self.sweep = HeadSweep(subject, "all", mode, stack=stack, cache_gb=cache_gb)

    def fingerprint(self) -> RunFingerprint:
        plan = {
            "verb": "heads",
            "mode": self.sweep.mode,
            "stack": self.sweep.stack_name,
            "control": self.control,
            "attention": self.attention,
        }
        return fingerprint(self.subject, self.task, plan, {})

    def __call__(self, samples: list[Sample]) -> xr.Dataset:
        by_id: dict[str, xr.Dataset] = {}
        with_donor = samples if self.control else []
        donors = {sample.id: donor_of(self.task, self.subject, sample) for sample in with_donor}
        for rows in groups(samples):
            group = [samples[row] for row in rows]
            tables = self.sweep(group, donors)
            for sample, table in zip(group, tables, strict=True):
                by_id[sample.id] = _described(table, sample, self.task)
        in_order = [by_id[sample.id] for sample in samples]
        table = xr.concat(in_order, "sample", combine_attrs="override")
        return table.assign(self._attention(samples)) if self.attention else table

    def _attention(self, samples: list[Sample]) -> Mapping[str, xr.DataArray]:
        """Mass, entropy and contribution of response → vision, by head, for the gold answer."""
        gold = [gold_answer(sample) for sample in samples]
        stack = self.sweep.stack_name
        options: dict[str, Any] = {"stacks": [stack], "rows": "text", "contribution": True}
        record = measure_samples(self.subject, samples, gold, progress=False, **options)
        measured = record[stack].to_dataset()
        chosen = measured.sel(query_type="response", key_type="vision", drop=True)
        return {name: chosen[name].drop_attrs() for name in BESIDE}


class PatchRun(SampleRun):
    """What `probe patch` measures: the gold answer with each layer patched at each group of
    positions.
    """

    def __init__(
        self,
        subject: Subject,
        task: BenchmarkTask,
        *,
        site: str = "residual",
        positions: str = "types",
        corruption: str = "given",
        direction: str = "both",
        stack: str = "llm",
        seed: int = 0,
        cache_gb: float = CACHE_GB,
    ):
        """`corruption`: "given", "image", "blank" or "noise". Raises ProbeError as `patch_sweep`
        does.
        """
        _require_images("patch", task)
        self.subject = subject
        self.task = task
        self.sweep = PatchSweep(
            subject,
            "all",
            positions,
            site,
            corruption=corruption,
            direction=direction,
            stack=stack,
            seed=seed,
            cache_gb=cache_gb,
        )

    def fingerprint(self) -> RunFingerprint:
        plan = {
            "verb": "patch",
            "site": self.sweep.cases.site,
            "positions": str(self.sweep.positions),
            "corruption": self.sweep.corruption,
            "directions": list(self.sweep.directions),
            "stack": self.sweep.cases.stack.name,
            "seed": self.sweep.seed,
        }
        return fingerprint(self.subject, self.task, plan, {})

    def __call__(self, samples: list[Sample]) -> xr.Dataset:
        (sample,) = samples
        table = self.sweep(sample, self._counterpart(sample))
        return _described(table, sample, self.task)

    def _counterpart(self, sample: Sample) -> Sample:
        if self.sweep.corruption != "image":
            return counterparts(self.subject, [sample], self.sweep.corruption)[sample.id]
        donor = donor_of(self.task, self.subject, sample)
        if donor is None:
            raise ProbeError("patch", expected="another image", got=f"none for {sample.id!r}")
        return replace(sample, image=donor)


def _require_images(called: str, task: BenchmarkTask) -> None:
    if not task.with_images:
        got = f"none in {task.benchmark.name}"
        raise ProbeError(called, expected="questions about images", got=got)


def _described(table: xr.Dataset, sample: Sample, task: BenchmarkTask) -> xr.Dataset:
    """With what is known of the sample."""
    facts = about(sample).drop_vars("image", errors="ignore")
    return table.assign(facts.data_vars).assign_attrs(benchmark=task.benchmark.name)
