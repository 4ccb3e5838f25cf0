"""A run: results over many samples in a directory that survives everything.

    run/
      run.json                                # written once: what was computed (model, plan, data, ...)
      parts/part-<worker>-<time>-<random>.zarr.zip    # some samples each; whole or not there; never changed
      failures/<worker>.jsonl                 # samples that could not be computed, with the reason
      final.zarr/                             # all as one dataset, in order; from `compact`; may be deleted

What is done is what is in the parts: there is no list beside them that could disagree. So a run
that was interrupted, or killed, goes on when the same command is given again; several workers may
write into one directory. What differs from `run.json` is refused by name.

    run = Run.open("probe-out/drop", Fingerprint(model="tiny-llava", ...))
    collect(run, samples, measure)            # measure(samples) -> Dataset or DataTree with those sample ids
    run.load([sample.id for sample in samples])
"""

import contextlib
import json
import os
import secrets
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import zarr

from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.records.provenance import RunFingerprint, first_difference, write_once
from probe.records.zarr_parts import (
    Labelled,
    ids_of,
    join,
    read_ids,
    read_part,
    read_skeleton,
    select,
    to_nodes,
    write_part,
)

PART_SAMPLES = 64
PART_SECONDS = 30.0  # at most so much work is lost in a crash
STALE_SECONDS = 3600.0  # an unfinished part this old has no writer any more
HOPELESS = 20  # failures in a row after which a run stops: it is not the samples


@dataclass(frozen=True)
class Failure:
    """A sample that could not be computed, at the attempt counted from 1."""

    id: str
    attempt: int
    reason: str


class RunDirectory:
    """A run directory as one worker sees it."""

    def __init__(self, folder: Path, worker: str = "0"):
        self.folder, self.worker = folder, worker

    @classmethod
    def open(
        cls, folder: str | Path, fingerprint: RunFingerprint, worker: str = "0"
    ) -> "RunDirectory":
        """Starts a run, or goes on with it. Raises ProbeError naming the field in which it is
        another run.
        """
        run = cls(Path(folder).expanduser(), worker)
        for part in ("parts", "failures"):
            (run.folder / part).mkdir(parents=True, exist_ok=True)
        given = fingerprint.plain()
        write_once(
            run.folder / "run.json",
            {"fingerprint": given, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")},
        )
        difference = first_difference(run.fingerprint(), given)
        if difference:
            name, old, new = difference
            raise ProbeError(
                "run",
                expected=f"{name} = {old}, with which {run.folder} was started",
                got=new,
                fix="use another --out, or the same settings",
            )
        run._clean()
        return run

    def fingerprint(self) -> dict[str, Any]:
        """What the run was started with. Raises ProbeError when `run.json` is missing or
        damaged.
        """
        try:
            return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ProbeError(
                "run", expected=f"a run directory with run.json in {self.folder}", got="none"
            ) from None

    def parts(self) -> list[Path]:
        """The finished parts, in order of their names."""
        return sorted((self.folder / "parts").glob("part-*.zarr.zip"))

    def done(self) -> set[str]:
        """Ids that are in a part."""
        return {name for part in self.parts() for name in read_ids(part)}

    def todo(self, samples: Sequence[Sample], attempts: int = 2) -> list[Sample]:
        """What is neither done nor has failed `attempts` times."""
        done, failed = self.done(), Counter(failure.id for failure in self._failed())
        return [
            sample for sample in samples if sample.id not in done and failed[sample.id] < attempts
        ]

    def fail(self, sample: str, error: BaseException) -> None:
        """Notes that a sample could not be computed."""
        attempt = 1 + sum(failure.id == sample for failure in self._failed())
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        line = json.dumps({"id": sample, "attempt": attempt, "reason": reason})
        with (self.folder / "failures" / f"{self.worker}.jsonl").open(
            "a", encoding="utf-8"
        ) as file:
            file.write(
                f"\n{line}\n"
            )  # the line before may be half a line, of a writer that was killed
            file.flush()
            os.fsync(file.fileno())

    def failures(self) -> list[Failure]:
        """Samples that failed and are not done, each with its last attempt."""
        done = self.done()
        return list(
            {failure.id: failure for failure in self._failed() if failure.id not in done}.values()
        )

    def stream(self) -> Iterator[Labelled]:
        """One part after the other; a sample that is in two of them comes once."""
        seen: set[str] = set()
        for path in self.parts():
            part = read_part(path)
            new = [row for row, name in enumerate(ids_of(part)) if name not in seen]
            seen.update(ids_of(part))
            if new:
                yield select(part, new)

    def load(self, order: Iterable[str] = ()) -> Labelled:
        """All of it in memory: first the samples in `order`, then any others."""
        return join(list(self._blocks(order, block=PART_SAMPLES)))

    def compact(self, order: Iterable[str] = (), block: int = 256) -> Path:
        """Writes all of it to `final.zarr`, `block` samples at a time, and returns its path."""
        final, temporary = (
            self.folder / "final.zarr",
            self.folder / f"final-{secrets.token_hex(4)}.tmp",
        )
        try:
            for number, data in enumerate(self._blocks(order, block)):
                for node, dataset in to_nodes(data).items():
                    if number:
                        fixed = [
                            name
                            for name, variable in dataset.variables.items()
                            if "sample" not in variable.dims
                        ]
                        dataset.drop_vars(fixed).to_zarr(
                            temporary, group=node, append_dim="sample", consolidated=False
                        )
                    else:
                        dataset.to_zarr(
                            temporary, group=node, mode="a", zarr_format=3, consolidated=False
                        )
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # zarr: consolidated metadata is not in its specification yet
                zarr.consolidate_metadata(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return final

    def _blocks(self, order: Iterable[str], block: int) -> Iterator[Labelled]:
        """The samples in order, `block` at a time, all with the same lengths along ragged
        dimensions.
        """
        paths = self.parts()
        where = {
            name: (path, row) for path in reversed(paths) for row, name in enumerate(read_ids(path))
        }
        if not where:
            raise ProbeError(
                "run", expected="at least one finished sample", got=f"none in {self.folder}"
            )
        finished = (name for path in paths for name in read_ids(path))
        wanted = [name for name in dict.fromkeys([*order, *finished]) if name in where]
        skeleton = join([read_skeleton(path) for path in paths])
        opened = lru_cache(maxsize=16)(read_part)
        for start in range(0, len(wanted), block):
            rows: dict[Path, list[int]] = {}
            for name in wanted[start : start + block]:
                rows.setdefault(where[name][0], []).append(where[name][1])
            data = join([skeleton, *(select(opened(path), taken) for path, taken in rows.items())])
            place = {name: row for row, name in enumerate(ids_of(data))}
            yield select(data, [place[name] for name in wanted[start : start + block]])

    def _failed(self) -> Iterator[Failure]:
        for file in sorted((self.folder / "failures").glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, TypeError):  # an empty line, or half of one
                    yield Failure(**json.loads(line))

    def _clean(self) -> None:
        for left in [*self.folder.glob("*.tmp"), *(self.folder / "parts").glob("*.tmp")]:
            with contextlib.suppress(OSError):  # another worker may have been faster
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


class Writer:
    """Gathers finished samples and writes them as a part when there are enough, or time is up, or
    the work ends.

    with Writer(run) as writer:
        writer.add(data)
    """

    def __init__(self, run: RunDirectory, size: int = PART_SAMPLES, seconds: float = PART_SECONDS):
        self.run, self.size, self.seconds = run, size, seconds
        self.waiting: list[Labelled] = []
        self.since = time.monotonic()

    def __enter__(self) -> "Writer":
        return self

    def add(self, data: Labelled) -> None:
        """Takes one or more finished samples."""
        self.waiting.append(data)
        samples = sum(len(ids_of(each)) for each in self.waiting)
        if samples >= self.size or time.monotonic() - self.since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting. Until the part is on the disk nothing is forgotten."""
        if self.waiting:
            write_part(join(self.waiting), self.run.folder / "parts", self.run.worker)
            self.waiting = []
        self.since = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self.flush()  # also after Ctrl-C: what is finished is kept


def run_samples(
    run: RunDirectory,
    samples: Sequence[Sample],
    measure: Callable[[list[Sample]], Labelled],
    *,
    batch: int = 1,
    attempts: int = 2,
    progress: Callable[[int], None] | None = None,
    size: int = PART_SAMPLES,
) -> None:
    """Measures what is still to do. `progress` gets the number of samples that have just been dealt
    with.

    A batch that fails is measured one by one; a sample that fails is listed, tried again by the
    next command, and given up after `attempts`. Ctrl-C keeps everything finished. Raises ProbeError
    after 20 failures in a row.
    """
    todo, in_a_row = run.todo(samples, attempts), 0
    with Writer(run, size) as writer:
        for start in range(0, len(todo), batch):
            group = todo[start : start + batch]
            for some, outcome in _outcomes(group, measure):
                if isinstance(outcome, Exception):
                    run.fail(some[0].id, outcome)
                    in_a_row += 1
                else:
                    writer.add(outcome)
                    in_a_row = 0
                if in_a_row >= HOPELESS:
                    raise ProbeError(
                        "run",
                        expected="samples that can be measured",
                        got=f"{HOPELESS} failures in a row, the last {outcome}",
                    )
                if progress:
                    progress(len(some))


def _outcomes(
    group: list[Sample], measure: Callable[[list[Sample]], Labelled]
) -> Iterator[tuple[list[Sample], Labelled | Exception]]:
    try:
        outcome: Labelled | Exception = _measured(group, measure)
    except Exception as error:
        outcome = error
    if isinstance(outcome, Exception) and len(group) > 1:
        for sample in group:
            yield from _outcomes([sample], measure)
    else:
        yield group, outcome


def _measured(group: list[Sample], measure: Callable[[list[Sample]], Labelled]) -> Labelled:
    data, asked = measure(group), [sample.id for sample in group]
    if sorted(ids_of(data)) != sorted(asked):
        raise ProbeError("run", expected=f"results for {asked}", got=f"{ids_of(data)}")
    return data
