"""A measurement of attention over the samples of a benchmark, as a resumable run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from probe.data.sample import Sample
from probe.evaluation.run_identity import fingerprint
from probe.evaluation.task import BenchmarkTask
from probe.interventions.sweep.result_table import golden
from probe.measures.attention.measure import measure_samples
from probe.records import validate
from probe.records.compact import without_pixels
from probe.records.run_directory import RunDirectory, run_samples
from probe.subject.subject import Subject

PER_SAMPLE = ("row_layers", "image_prefixes")  # counts, not settings
Progress = Callable[[int], None]
ATTENTION_VALUES = ("mass", "share", "lift")


ATTENTION_BATCH = 16  # samples between two looks at the clock


def attention_to_vision(record: xr.DataTree, stack: str = "llm") -> xr.Dataset:
    """Mass, share and lift of vision by layer and query type, mean over heads."""
    measured = record[stack].to_dataset()[list(ATTENTION_VALUES)]
    averaged = measured.sel(key_type="vision", drop=True).mean("head", keep_attrs=True)
    return averaged.assign_attrs(record.attrs)


def attention_run(
    subject: Subject,
    task: BenchmarkTask,
    folder: str | Path,
    *,
    progress: Progress | None = None,
    max_new_tokens: int = 32,
    types: str = "paper",
    maps: bool = False,
) -> RunDirectory:
    """Records of a benchmark's samples in a run directory, as `measure` makes them, without pixels.

    Where each patch is, and what it receives, is kept with `maps` only: it is most of a record.
    """
    options: dict[str, Any] = {"types": types, "maps": maps, "max_new_tokens": max_new_tokens}
    run = RunDirectory.open(
        folder,
        fingerprint(
            subject,
            task,
            {"verb": "attention", "types": types, "maps": maps},
            {"max_new_tokens": max_new_tokens},
        ),
    )
    imaged = {bool(sample.images) for sample in task.samples}
    stacks = (
        ["llm"] if imaged == {True, False} else None
    )  # a sample without an image has no encoder

    def measured(samples: list[Sample]) -> xr.DataTree:
        record = measure_samples(subject, samples, stacks=stacks, progress=False, **options)
        return without_pixels(record, {sample.id: sample for sample in samples}, keep_patches=maps)

    run_samples(run, task.samples, measured, batch=ATTENTION_BATCH, progress=progress)
    return run


def merged(run: RunDirectory, task: BenchmarkTask) -> xr.DataTree:
    """All of an attention run as one record, in the order of the benchmark."""
    loaded = run.load([sample.id for sample in task.benchmark.samples])
    return validate(loaded)


def _without_counts(table: xr.Dataset) -> xr.Dataset:
    table.attrs = {name: value for name, value in table.attrs.items() if name not in PER_SAMPLE}
    return table


def about(sample: Sample) -> xr.Dataset:
    """What figures and tables need to know of a sample."""
    told = {name: str(sample.meta[name]) for name in ("image", "kind", "unit")}
    told |= {"question": str(sample.question), "gold": next(iter(golden(sample)), "")}
    return xr.Dataset(
        {name: ("sample", np.array([text], dtype=object)) for name, text in told.items()},
        coords={"sample": np.array([sample.id], dtype=object)},
    )
