"""How far a run is, from its folder alone: what is done, claimed and failed, how fast, by whom.

found = run_status("probe-out/drop")
found.done, found.asked, found.seconds_left
[worker.name for worker in found.workers]
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from probe.records.run_claims import Claim, Claims
from probe.records.run_directory import RunDirectory
from probe.records.run_failures import Failure
from probe.records.run_index import Part

RECENT_SECONDS = 900.0  # over which a rate is taken


@dataclass(frozen=True)
class WorkerStatus:
    """One worker: samples that are done and claimed, and its recent rate in samples a second."""

    name: str
    process: str  # host and process number; "" for one that has no claims now
    state: str
    done: int
    claimed: int
    rate: float


@dataclass(frozen=True)
class RunStatus:
    """A run: counts of samples, the recent rate in samples a second, its workers."""

    name: str
    done: int
    claimed: int
    asked: int  # by the last command; 0 where none has noted it
    rate: float
    failures: tuple[Failure, ...]
    workers: tuple[WorkerStatus, ...]

    @property
    def seconds_left(self) -> float | None:
        """None where it can't be told, and where nothing is left."""
        left = self.asked - self.done - len(self.failures)
        return left / self.rate if self.rate and left > 0 else None


def run_status(folder: str | Path) -> RunStatus:
    """The status of a run. Raises ProbeError for a folder without a run."""
    run = RunDirectory(Path(folder).expanduser())
    fingerprint = run.fingerprint()
    done = run.done()
    failures = tuple(run.failures())
    parts = run.whole_parts()
    claims = [claim for claim in Claims(run.folder).all() if claim.samples]
    live = [claim for claim in claims if claim.live]
    names = dict.fromkeys(
        [*(_worker_of(part) for part in parts), *(c.process.worker for c in live)]
    )
    plan = fingerprint.get("plan")
    verb = plan.get("verb", "run") if isinstance(plan, dict) else "run"
    return RunStatus(
        name=f"{verb} of {fingerprint.get('model')} on {_benchmark(fingerprint)}",
        done=len(done),
        claimed=_count(live, done),
        asked=run.asked(),
        rate=_rate(parts),
        failures=failures,
        workers=tuple(
            _worker(
                name,
                [part for part in parts if _worker_of(part) == name],
                [claim for claim in claims if claim.process.worker == name],
                done,
            )
            for name in sorted(names, key=lambda name: (len(name), name))
        ),
    )


def _worker(name: str, parts: list[Part], claims: list[Claim], done: set[str]) -> WorkerStatus:
    live = [claim for claim in claims if claim.live]
    lost = [claim for claim in claims if claim.died]
    state = "died" if lost else "idle or ended"
    if live:
        measuring = [claim for claim in live if not claim.measured]
        state = f"measuring {measuring[0].samples[0]}" if measuring else "writing"
    processes = dict.fromkeys(str(claim.process) for claim in live or lost)
    samples = sum(len(part.ids) for part in parts)
    return WorkerStatus(
        name, ", ".join(processes), state, samples, _count(live, done), _rate(parts)
    )


def _count(claims: Sequence[Claim], done: set[str]) -> int:
    return len({name for claim in claims for name in claim.samples} - done)


def _worker_of(part: Part) -> str:
    return part.name.removeprefix("part-").rsplit("-", 2)[0]


def _rate(parts: Sequence[Part]) -> float:
    """Samples a second in the parts of the last minutes, after the first of them."""
    since = time.time() - RECENT_SECONDS
    ends = [(part.time / 1e9, len(part.ids)) for part in parts]
    recent = sorted(end for end in ends if end[0] > since)
    if len(recent) < 2:
        return 0.0
    first = recent[0][0]
    last = max(recent[-1][0], 1e-9)
    samples = sum(count for _, count in recent[1:])
    return samples / (last - first) if last > first else 0.0


def _benchmark(fingerprint: dict) -> str:
    data = fingerprint.get("data")
    return str(data.get("benchmark", "?")) if isinstance(data, dict) else json.dumps(data)
