"""What verbs over a benchmark share: its questions, progress, and what could not be used."""

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from probe.cli.options import BenchmarkOptions
from probe.cli.output import say
from probe.cli.result_folder import ResultFolder
from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.evaluation.task import BenchmarkTask
    from probe.records.run_directory import RunDirectory

SHAPES_LIMIT = 90  # questions: about a minute
SHOWN = 3  # problems on the terminal; all are in problems.csv


def read_task(options: BenchmarkOptions) -> "BenchmarkTask":
    """The questions of a benchmark. Mistakes are reported before any model is loaded."""
    from probe.evaluation.task import BenchmarkTask

    name = options.benchmark
    limit = options.limit or (SHAPES_LIMIT if name == "shapes" else None)
    try:
        task = BenchmarkTask.read(name, options.data, limit, options.split)
    except OSError as error:  # a file that may not be read
        raise ProbeError("--data", expected="files that can be read", got=str(error)) from error
    if task.benchmark.note:
        say("note", f"{name}: {task.benchmark.note}")
    return task


@contextmanager
def show_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where it is a terminal; a line now and then where it is not."""
    from tqdm.auto import tqdm

    slow = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 120, "ascii": True}
    bar = tqdm(total=total, desc=label, unit="sample", disable=not total, file=sys.stderr, **slow)

    def step(count: int) -> None:
        bar.update(count)

    with bar:
        yield step


def write_problems(run: "RunDirectory", task: "BenchmarkTask", folder: ResultFolder) -> str:
    """Writes `problems.csv` (bad rows and failed samples); says how many there are.

    Raises ProbeError where nothing at all could be measured.
    """
    failures = run.failures()
    if failures and not run.done():
        got = f"{len(failures)} failures, the first {failures[0].reason}"
        raise ProbeError("run", expected="at least one sample that can be measured", got=got)
    skipped = task.benchmark.problems
    rows = [(row.file, row.row, f"expected {row.expected}, got {row.got}") for row in skipped]
    rows += [("sample", failure.id, failure.reason) for failure in failures]
    with folder.file("problems.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("where", "row", "problem"), *rows])
    if not rows:
        return "no bad row, no failed sample"
    lines = [f"{len(skipped)} bad rows left out, {len(failures)} samples failed (problems.csv):"]
    for where, row, problem in rows[:SHOWN]:
        lines.append(f"  {where}, {row}: {problem}")
    if len(rows) > SHOWN:
        lines.append("  ...")
    return "\n".join(lines)
