"""`probe status`: how far a run is, and who works on it. Loads no model."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probe.cli.output import say, show_table

if TYPE_CHECKING:
    from probe.records.run_status import RunStatus

SHOWN = 3  # failures on the terminal; all are in problems.csv when the run has ended

Folder = Annotated[Path, typer.Argument(help="the --out of a run", show_default=False)]


def status(folder: Folder) -> None:
    """How far a run over a benchmark is: samples done, claimed and failed, rate, time left, and a
    line a worker.
    """
    from probe.records.run_status import run_status

    found = run_status(folder)
    say(found.name, _progress(found))
    rows = [
        [worker.name, worker.process, worker.state, worker.done, worker.claimed, _rate(worker.rate)]
        for worker in found.workers
    ]
    headings = {"worker": "right", "process": "left", "state": "left"}
    headings |= dict.fromkeys(("done", "claimed", "rate"), "right")
    caption = "claimed: samples that a worker has measured or is measuring, not written yet"
    if rows:
        show_table("Workers", headings, rows, caption)
    for failure in found.failures[:SHOWN]:
        say("failed", f"{failure.id}, attempt {failure.attempt}: {failure.reason}")
    if len(found.failures) > SHOWN:
        say("failed", f"and {len(found.failures) - SHOWN} more")


def _progress(found: "RunStatus") -> str:
    of = f" of {found.asked}" if found.asked else ""
    line = f"{found.done}{of} samples done, {found.claimed} claimed, {len(found.failures)} failed"
    if not found.rate:
        return line
    left = found.seconds_left
    ends = "" if left is None else f", {duration(left)} left (until {_clock(left)})"
    return f"{line}; {_rate(found.rate)}{ends}"


def _rate(per_second: float) -> str:
    """
    >>> _rate(2.5), _rate(0.05), _rate(0)
    ('2.5/s', '3.0/min', '-')
    """
    if not per_second:
        return "-"
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{60 * per_second:.1f}/min"


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(620), duration(8000)
    ('42 s', '10 min', '2 h 13 min')
    """
    minutes = round(seconds) // 60
    if not minutes:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M", time.localtime(time.time() + seconds))
