"""Vision tokens dropped from layers, over the questions of a benchmark, as a resumable run.

    task = BenchmarkTask.read("gqa", "data/gqa", limit=500)
    dropping = DropRun(subject, task, {"mask": windows(4), "swap": windows(4)})
    print(dropping.estimate())
    run = dropping.run("probe-out/drop")      # the same line again goes on with it
    effects(dropping.results(run))               # accuracy of every case, with intervals

A part of such a run is a tree: a node for each mode of dropping (a table of `drop_sweep`), and one
with the attention that text gives to vision, from the same samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from probe.data.sample import Sample
from probe.errors import ProbeError, one_of
from probe.evaluation.drop_effects import ATTENTION
from probe.evaluation.run_identity import fingerprint
from probe.evaluation.sample_run import SampleRun, about, donor_of
from probe.evaluation.task import BenchmarkTask
from probe.hooks.model_structure import stacks
from probe.interventions.layer_target import Names, as_names
from probe.interventions.sweep import Sweep
from probe.interventions.sweep.layer_sets import Cases
from probe.interventions.sweep.visibility import SWEEP_MODES
from probe.measures.attention.measure import measure_samples
from probe.records.provenance import RunFingerprint
from probe.subject.image_questions import ImageQuestions
from probe.subject.prefix_cache import CACHE_GB, PrefixCache
from probe.subject.subject import Subject

ATTENTION_VALUES = ("mass", "share", "lift")
# attrs and variables that count what a sweep did, which depends on where a run was interrupted
WORK_COUNTS = ("row_layers", "image_prefixes")
FIRST_SAMPLES = 100  # among which one is looked for that can be encoded, for the estimate


class DropRun(SampleRun):
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
        cache_gb: float = CACHE_GB,
    ):
        """`modes`: each with its cases, as in `drop_sweep`. `cache_gb`: of keys and values of
        images, kept for the next questions about them. Raises ProbeError as `drop_sweep` does.
        """
        for mode in modes:
            one_of("drop", "modes of", mode, SWEEP_MODES)
        if not task.with_images:
            got = f"none in {task.benchmark.name}"
            raise ProbeError("drop", expected="questions about images", got=got)
        self.subject = subject
        self.task = task
        self.stack = stack
        self.queries = queries
        self.max_new_tokens = max_new_tokens
        self.attention = attention
        self.sweeps: dict[str, Sweep] = {}
        # the modes, and the measurement of attention, share image prefixes
        cache = PrefixCache(subject.model, stacks(subject.model)["llm"], cache_gb)
        self.questions = ImageQuestions(subject, cache=cache)
        for mode, cases in modes.items():
            self.sweeps[mode] = Sweep(
                subject,
                cases,
                mode,
                stack,
                queries=queries,
                max_new_tokens=max_new_tokens,
                score=task.score,
                cache=cache,
            )

    def fingerprint(self) -> RunFingerprint:
        modes = {mode: _plan_of(sweep) for mode, sweep in self.sweeps.items()}
        plan: dict[str, Any] = {"verb": "drop", "modes": modes, "attention": self.attention}
        if self.stack != "llm":
            plan["stack"] = self.stack
            plan["queries"] = "+".join(as_names(self.queries or ()))
        options = {"max_new_tokens": self.max_new_tokens}
        return fingerprint(self.subject, self.task, plan, options)

    def estimate(self, samples: Sequence[Sample] | None = None) -> list[str]:
        """What these samples (by default all) will cost, one line a mode. An upper bound: answers
        may end early.
        """
        samples = list(self.samples if samples is None else samples)
        readable = next((s for s in samples[:FIRST_SAMPLES] if self._can_encode(s)), None)
        if readable is None:
            return []
        samples.remove(readable)
        lines = []
        for mode, sweep in self.sweeps.items():
            cost = sweep.estimate([readable, *samples]).removeprefix("drop_sweep: ")
            lines.append(f"{mode}: {cost}")
        return lines

    def _can_encode(self, sample: Sample) -> bool:
        try:
            self.subject.encode(list(sample.images), sample.question)
        except ProbeError:
            return False
        return True

    def __call__(self, samples: list[Sample]) -> xr.DataTree:
        """One sample (a list, as `run_samples` has it) in every case of every mode."""
        (sample,) = samples
        donor = donor_of(self.task, self.subject, sample)
        nodes = {}
        for mode, sweep in self.sweeps.items():
            table = sweep(sample, donor).drop_vars(WORK_COUNTS)
            kept = {name: v for name, v in table.attrs.items() if name not in WORK_COUNTS}
            table.attrs = kept
            nodes[mode] = table
        if self.attention:
            record = measure_samples(
                self.subject,
                [sample],
                stacks=[self.stack],
                rows="text",
                max_new_tokens=self.max_new_tokens,
                share=self.questions,
            )
            nodes[ATTENTION] = attention_to_vision(record, self.stack)
        facts = self.subject.provenance() | {"benchmark": self.task.benchmark.name}
        root = about(sample).assign_attrs(facts)
        return xr.DataTree.from_dict({"/": root, **nodes})


def _plan_of(sweep: Sweep) -> dict[str, Any]:
    """The layers of each case, and the part of vision of one that drops only that."""
    plan: dict[str, Any] = {case: sorted(layers) for case, layers in sweep.cases.items()}
    for case, part in sweep.parts.items():
        plan[case] = {"layers": plan[case], "part": str(part)}
    return plan


def attention_to_vision(record: xr.DataTree, stack: str = "llm") -> xr.Dataset:
    """Mass, share and lift of vision by layer and query type, mean over heads."""
    measured = record[stack].to_dataset()[list(ATTENTION_VALUES)]
    averaged = measured.sel(key_type="vision", drop=True).mean("head", keep_attrs=True)
    return averaged.assign_attrs(record.attrs)


def predictions(table: xr.Dataset, case: str) -> dict[str, str]:
    """Sample id -> the answer in a case."""
    answers = table["answer"].sel(case=case)
    return dict(zip(table["sample"].values.tolist(), answers.values.tolist(), strict=True))
