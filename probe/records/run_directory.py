"""A run: results over many samples in a directory that survives crashes.

    run/
      run.json               # written once: what was computed (model, plan, data, ...)
      parts/part-<worker>-<time>-<random>.zarr.zip
                             # some samples each; complete; never changed
      failures/<worker>.jsonl
                             # samples that could not be computed, with the reason
      final.zarr/            # all as one dataset, in order; from `compact`; may be deleted

A sample is done when a part contains it; no separate list could disagree with the parts. So a run
that was interrupted or killed resumes when the same command is given again, and several workers may
write into one directory. Settings that differ from `run.json` are refused by name.

    run = RunDirectory.open("probe-out/drop", RunFingerprint(model="tiny-llava", ...))
    run_samples(run, samples, measure)    # measure(samples) -> Dataset or DataTree with those ids
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

import xarray as xr
import zarr

from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.records.concat import SAMPLE, Labelled, datasets_of, ids_of, join, select
from probe.records.io import read_ids, read_part, write_once, write_part
from probe.records.provenance import RunFingerprint, first_difference

PART_SAMPLES = 64
PART_SECONDS = 30.0  # a crash loses at most the work of so long a time
STALE_SECONDS = 3600.0  # an unfinished part this old has lost its writer
MAX_FAILURES = 20  # abort after this many consecutive failures
READ_AHEAD = 16  # parts in memory at once while a run is put in order


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
        """Starts or resumes a run. Raises ProbeError naming the setting in which the folder's run
        differs.
        """
        run = cls(Path(folder).expanduser(), worker)
        for part in ("parts", "failures"):
            (run.folder / part).mkdir(parents=True, exist_ok=True)
        settings = fingerprint.plain()
        created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_once(run.folder / "run.json", {"fingerprint": settings, "created": created})
        difference = first_difference(run.fingerprint(), settings)
        if difference:
            name, old, new = difference
            raise ProbeError(
                "run",
                expected=f"{name} = {old}, with which {run.folder} was started",
                got=new,
                fix="use another --out, or the same settings",
            )
        run._remove_stale_files()
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
        """The samples that are neither done nor have failed `attempts` times."""
        done, failed = self.done(), Counter(failure.id for failure in self._failures())
        open_samples = [sample for sample in samples if sample.id not in done]
        return [sample for sample in open_samples if failed[sample.id] < attempts]

    def fail(self, sample: str, error: BaseException) -> None:
        """Notes that a sample could not be computed."""
        attempt = 1 + sum(failure.id == sample for failure in self._failures())
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        line = json.dumps({"id": sample, "attempt": attempt, "reason": reason})
        path = self.folder / "failures" / f"{self.worker}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            # the line before may be half a line, of a writer that was killed
            file.write(f"\n{line}\n")
            file.flush()
            os.fsync(file.fileno())

    def failures(self) -> list[Failure]:
        """Samples that failed and are not done, each with its last attempt."""
        done = self.done()
        last = {failure.id: failure for failure in self._failures()}
        return [failure for failure in last.values() if failure.id not in done]

    def stream(self) -> Iterator[Labelled]:
        """One part after the other; a sample that two parts contain comes once."""
        seen: set[str] = set()
        for path in self.parts():
            part = read_part(path)
            ids = ids_of(part)
            new = [row for row, name in enumerate(ids) if name not in seen]
            seen.update(ids)
            if new:
                yield select(part, new)

    def load(self, order: Iterable[str] = ()) -> Labelled:
        """All samples in memory: first those in `order`, then any others."""
        return join(list(self._blocks(order, block=PART_SAMPLES)))

    def compact(self, order: Iterable[str] = (), block: int = 256) -> Path:
        """Writes all samples to `final.zarr`, `block` at a time, and returns its path."""
        final = self.folder / "final.zarr"
        temporary = self.folder / f"final-{secrets.token_hex(4)}.tmp"
        try:
            for number, data in enumerate(self._blocks(order, block)):
                for path, dataset in datasets_of(data).items():
                    _append(dataset, temporary, path, first=number == 0)
            with warnings.catch_warnings():
                # zarr: consolidated metadata is not in its specification yet
                warnings.simplefilter("ignore")
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
        ids = {path: read_ids(path) for path in self.parts()}
        place: dict[str, tuple[Path, int]] = {}  # of a sample: the first part that contains it
        for path, names in ids.items():
            for row, name in enumerate(names):
                place.setdefault(name, (path, row))
        if not place:
            raise ProbeError(
                "run", expected="at least one finished sample", got=f"none in {self.folder}"
            )
        wanted = [name for name in dict.fromkeys([*order, *place]) if name in place]
        # parts without samples: what all samples share, and the longest ragged dimensions
        skeleton = join([read_part(path, slice(0, 0)) for path in ids])
        opened = lru_cache(maxsize=READ_AHEAD)(read_part)
        for start in range(0, len(wanted), block):
            names = wanted[start : start + block]
            rows: dict[Path, list[int]] = {}
            for name in names:
                path, row = place[name]
                rows.setdefault(path, []).append(row)
            data = join([skeleton, *(select(opened(path), taken) for path, taken in rows.items())])
            position = {name: row for row, name in enumerate(ids_of(data))}
            yield select(data, [position[name] for name in names])

    def _failures(self) -> Iterator[Failure]:
        for file in sorted((self.folder / "failures").glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, TypeError):  # an empty line, or half of one
                    yield Failure(**json.loads(line))

    def _remove_stale_files(self) -> None:
        for path in [*self.folder.glob("*.tmp"), *(self.folder / "parts").glob("*.tmp")]:
            with contextlib.suppress(OSError):  # another worker may have been faster
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _append(dataset: xr.Dataset, folder: Path, path: str, first: bool) -> None:
    """Writes samples into a node of a zarr folder; variables without samples only the first
    time.
    """
    if first:
        dataset.to_zarr(folder, group=path, mode="a", zarr_format=3, consolidated=False)
        return
    fixed = [name for name, each in dataset.variables.items() if SAMPLE not in each.dims]
    samples = dataset.drop_vars(fixed)
    samples.to_zarr(folder, group=path, append_dim=SAMPLE, consolidated=False)


class Writer:
    """Collects finished samples and writes them as a part when there are `size` of them, when
    `seconds` have passed, and at the end of the block.

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
        """Writes what is waiting; kept in memory until the part is on the disk."""
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
    """Measures the samples of a run that are not done. `progress` gets the number of samples that
    were just measured or have failed.

    A batch that fails is measured one by one; a sample that fails is listed, tried again by the
    next command, and given up after `attempts`. Ctrl-C keeps everything finished. Raises ProbeError
    after 20 consecutive failures.
    """
    todo, failures = run.todo(samples, attempts), 0
    with Writer(run, size) as writer:
        for start in range(0, len(todo), batch):
            for group, outcome in _outcomes(todo[start : start + batch], measure):
                if isinstance(outcome, Exception):
                    run.fail(group[0].id, outcome)
                    failures += 1
                else:
                    writer.add(outcome)
                    failures = 0
                if failures >= MAX_FAILURES:
                    raise ProbeError(
                        "run",
                        expected="samples that can be measured",
                        got=f"{MAX_FAILURES} failures in a row, the last {outcome}",
                    )
                if progress:
                    progress(len(group))


def _outcomes(
    group: list[Sample], measure: Callable[[list[Sample]], Labelled]
) -> Iterator[tuple[list[Sample], Labelled | Exception]]:
    """The results of a group, or where it fails those of each of its samples."""
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
