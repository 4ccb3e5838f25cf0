"""Scores of a judge, for the benchmarks whose answers only a judge can score: into the tables of a
finished run.

`probe drop --export` writes every case's answers to `predictions/<mode>/<case>/`. The judge
reads them, and what it writes goes beside them as `judged.json` (or `.jsonl`); the same command
with `--judged` then draws and tabulates them. A single file is taken as the judge's word on the
untouched model.

    scored = judged(load_run(run, task), task, "probe-out/drop/predictions")
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from probe.errors import ProbeError
from probe.evaluation.drop_effects import ATTENTION, mode_of
from probe.evaluation.headline import REFERENCE
from probe.evaluation.task import BenchmarkTask

FILES = ("judged.json", "judged.jsonl")
TOP = 10  # a judge's best mark in LLaVA-Bench


def folder_of(mode: str, case: str) -> Path:
    """Where the answers of a case are, within `predictions/`.

    >>> folder_of("mask_frozen", "no vision").as_posix()
    'mask_frozen/no-vision'
    """
    return Path(mode) / case.replace(" ", "-")


def check_judged(task: BenchmarkTask, path: Path) -> None:
    """Raises ProbeError for a benchmark that scores its own answers, and where there is nothing of
    a judge.
    """
    if not hasattr(task.module, "judged"):
        raise ProbeError(
            "--judged",
            expected="a benchmark that a judge scores: msvd_qa, msrvtt_qa, activitynet_qa, "
            "video_chatgpt, llava_w or mm_vet",
            got=task.benchmark.name,
            fix="leave it out",
        )
    if not path.is_file() and not any(file for name in FILES for file in path.rglob(name)):
        raise ProbeError(
            "--judged",
            expected="a judge's file, or a folder laid out as predictions/ with judged.json "
            "(.jsonl) in it",
            got=str(path),
        )


def judged(results: xr.DataTree, task: BenchmarkTask, path: str | Path) -> xr.DataTree:
    """The results with the scores of every case that was judged. Raises ProbeError for a file that
    is none.
    """
    path = Path(path)
    check_judged(task, path)
    nodes = {name: node.to_dataset() for name, node in results.children.items()}
    scored = {
        name: table if name == ATTENTION or "case" not in table.dims else _scored(table, task, path)
        for name, table in nodes.items()
    }
    return xr.DataTree.from_dict({"/": results.to_dataset(), **scored})


def _scored(table: xr.Dataset, task: BenchmarkTask, path: Path) -> xr.Dataset:
    dims = ("sample", "case")
    shape = [table.sizes[dim] for dim in dims]
    correct = np.full(shape, np.nan, dtype=np.float32)
    reference = np.full(shape, np.nan, dtype=np.float32)
    samples = [str(sample) for sample in table["sample"].values]
    module: Any = task.module
    for column, case in enumerate(map(str, table["case"].values)):
        file = _file(path, mode_of(table), case, untouched=column == 0)
        scores = {} if file is None else module.judged(file)
        for row, sample in enumerate(samples):
            correct[row, column], reference[row, column] = _two(scores, sample)
    scored = {"correct": (dims, correct)}
    if not np.isnan(reference).all():
        scored[REFERENCE] = (dims, reference)
    return table.assign(scored)


def _file(path: Path, mode: str, case: str, untouched: bool) -> Path | None:
    if path.is_file():
        return path if untouched else None
    return next(
        (file for name in FILES if (file := path / folder_of(mode, case) / name).is_file()), None
    )


def _two(scores: Mapping[str, float | tuple[float, float]], sample: str) -> tuple[float, float]:
    """The model's score, and the one of the reference where the judge gave two; in [0, 1], NaN
    where it gave none.
    """
    score = scores.get(sample, float("nan"))
    if not isinstance(score, tuple):
        return score, float("nan")
    reference, model = score
    if min(score) < 0:
        return float("nan"), float("nan")
    return model / TOP, reference / TOP
