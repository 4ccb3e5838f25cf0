"""What verbs over a benchmark share: its questions, progress, and a list of what could not be
used.
"""

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from probe.errors import ProbeError

if TYPE_CHECKING:
    from probe.evaluation.task import BenchmarkTask
    from probe.records.run_directory import RunDirectory

SHAPES_LIMIT = 90  # questions: about a minute
SHOWN = 3  # problems on the terminal; all are in problems.csv


def task_of(name: str, data: Path | None, limit: int | None, split: str | None) -> "BenchmarkTask":
    """The questions of a benchmark. Mistakes are told before any model is loaded."""
    from probe.evaluation.task import BenchmarkTask

    try:
        return BenchmarkTask.read(
            name, data, limit or (SHAPES_LIMIT if name == "shapes" else None), split
        )
    except OSError as error:  # a file that may not be read
        raise ProbeError("--data", expected="files that can be read", got=str(error)) from error


@contextmanager
def show_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where it is a terminal; a line every so often where it is not."""
    from tqdm.auto import tqdm

    slow = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 120, "ascii": True}
    with tqdm(
        total=total, desc=label, unit="sample", disable=total == 0, file=sys.stderr, **slow
    ) as bar:

        def step(count: int) -> None:
            bar.update(count)

        yield step


def dealt_with(run: "RunDirectory", task: "BenchmarkTask", folder: Path) -> str:
    """Writes `problems.csv` (bad rows and failed samples) and says how many there are.

    Raises ProbeError where nothing at all could be measured.
    """
    failures = run.failures()
    if failures and not run.done():
        got = f"{len(failures)} failures, the first {failures[0].reason}"
        raise ProbeError("run", expected="at least one sample that can be measured", got=got)
    problems = task.benchmark.problems
    rows = [(p.file, p.row, f"expected {p.expected}, got {p.got}") for p in problems]
    rows += [("sample", f.id, f.reason) for f in failures]
    with (folder / "problems.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("where", "row", "problem"), *rows])
    if not rows:
        return "no bad row, no failed sample"
    shown = [f"  {where}, {row}: {problem}" for where, row, problem in rows[:SHOWN]]
    told = f"{len(problems)} bad rows left out, {len(failures)} samples failed (problems.csv):"
    return escape("\n".join([told, *shown, *(["  ..."] if len(rows) > SHOWN else [])]))
