"""Samples that could not be computed, with the reason: a line each in `failures/<worker>.jsonl`.

failures = FailureLog(folder, worker="0")
failures.add("question-3", 1, "OSError: image file is truncated")
failures.attempts()                               # {"question-3": 1}
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from probe.errors import ProbeError, reason_of


@dataclass(frozen=True)
class Failure:
    """A sample that could not be computed, at the attempt counted from 1."""

    id: str
    attempt: int
    reason: str


class FailureLog:
    """The failures of a run; each worker adds to a file of its own."""

    def __init__(self, folder: Path, worker: str = "0"):
        self.folder = folder / "failures"
        self.worker = worker

    def add(self, sample: str, attempt: int, reason: str) -> None:
        """Notes a failure; it is on the disk afterwards."""
        failure = Failure(sample, attempt, " ".join(reason.split()))
        line = json.dumps(asdict(failure))
        with (self.folder / f"{self.worker}.jsonl").open("a", encoding="utf-8") as file:
            # the line before may be half a line, of a writer that was killed
            file.write(f"\n{line}\n")
            file.flush()
            os.fsync(file.fileno())

    def attempts(self) -> dict[str, int]:
        """How often each sample has failed."""
        counts: dict[str, int] = {}
        for failure in self:
            counts[failure.id] = max(failure.attempt, counts.get(failure.id, 0) + 1)
        return counts

    def __iter__(self) -> Iterator[Failure]:
        """All that can be read; raises ProbeError for a file that can't."""
        for file in sorted(self.folder.glob("*.jsonl")):
            try:
                lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError as error:
                got = f"{file} ({reason_of(error)})"
                raise ProbeError("run", expected="a list of failures", got=got) from None
            for line in lines:
                # an empty line, half of one, or one that no run wrote
                with contextlib.suppress(ValueError, TypeError, RecursionError):
                    failure = Failure(**json.loads(line))
                    if isinstance(failure.id, str) and isinstance(failure.attempt, int):
                        yield failure
