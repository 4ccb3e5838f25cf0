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
write into one directory. Settings that differ from `run.json`, or from those that each part
carries, are refused by name. A part whose checksum is wrong is renamed to `*.damaged`, and its
samples are computed again. Only temporary files that carry the token of this run are ever removed.

    run = RunDirectory.open("probe-out/drop", RunFingerprint(model="tiny-llava", ...))
    run_samples(run, samples, measure)    # measure(samples) -> Dataset or DataTree with those ids
    run.load([sample.id for sample in samples])
"""

import contextlib
import json
import os
import re
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
from probe.records.io import (
    DamagedPartError,
    read_part,
    read_part_header,
    reason_of,
    write_once,
    write_part,
)
from probe.records.provenance import RunFingerprint
from probe.records.run_settings import (
    compare_versions,
    read_settings,
    refuse_another_run,
    report,
    settings_of,
    token_of,
)

PART_SAMPLES = 64
PART_SECONDS = 30.0  # a crash loses at most the work of so long a time
STALE_SECONDS = 3600.0  # an unfinished part this old has lost its writer
MAX_FAILURES = 20  # abort after this many consecutive failures
READ_AHEAD = 16  # parts in memory at once while a run is put in order
OWNER = ".probe-run"  # file in final.zarr with the token of the run that wrote it


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
        self._settings: dict[str, Any] = {}  # of this worker, once it is open

    @classmethod
    def open(
        cls,
        folder: str | Path,
        fingerprint: RunFingerprint,
        worker: str = "0",
        *,
        strict_versions: bool = False,
    ) -> "RunDirectory":
        """Starts or resumes a run.

        Raises ProbeError naming the setting in which the folder's run, or a part of it, differs,
        and for a folder that can't be written. Other versions of the libraries than those of the
        parts are reported in a line, or with `strict_versions` refused.
        """
        run = cls(Path(folder).expanduser(), worker)
        run._settings = settings = settings_of(fingerprint)
        started = (run.folder / "run.json").exists()
        if started:
            refuse_another_run(run.folder, run.settings(), settings)
        with writing(run.folder):
            for part in ("parts", "failures"):
                (run.folder / part).mkdir(parents=True, exist_ok=True)
        before = run._settings_of_parts(settings, started)
        if not started:
            created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            with writing(run.folder):
                write_once(run.folder / "run.json", settings | {"created": created})
            refuse_another_run(run.folder, run.settings(), settings)  # of a worker that was faster
        before.append(run.settings())
        compare_versions(run.folder, before, settings["versions"], strict=strict_versions)
        run._remove_stale_files()
        return run

    def settings(self) -> dict[str, Any]:
        """What `run.json` holds: `fingerprint`, `versions` and `created`. Raises ProbeError when it
        is missing or damaged.
        """
        return read_settings(self.folder)

    def fingerprint(self) -> dict[str, Any]:
        """What the run was started with. Raises ProbeError when `run.json` is missing or
        damaged.
        """
        return self.settings()["fingerprint"]

    def parts(self) -> list[Path]:
        """The finished parts, in order of their names."""
        return sorted((self.folder / "parts").glob("part-*.zarr.zip"))

    def done(self) -> set[str]:
        """Ids that are in a whole part. A damaged part is reported in a line and renamed, so that
        its samples are computed again.
        """
        return {name for ids, _ in self._whole_parts().values() for name in ids}

    def write(self, data: Labelled) -> Path:
        """Writes finished samples as a part, which carries the settings of the run."""
        settings = self._settings or self.settings()
        token = f"{self._token()}-"
        with writing(self.folder):
            return write_part(data, self.folder / "parts", self.worker, run=settings, token=token)

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
        with writing(self.folder), path.open("a", encoding="utf-8") as file:
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
        temporary, old = self._temporary_folder(), self._temporary_folder()
        with writing(self.folder):
            try:
                for number, data in enumerate(self._blocks(order, block)):
                    for path, dataset in datasets_of(data).items():
                        _append(dataset, temporary, path, first=number == 0)
                with warnings.catch_warnings():
                    # zarr: consolidated metadata is not in its specification yet
                    warnings.simplefilter("ignore")
                    zarr.consolidate_metadata(temporary)
                (temporary / OWNER).write_text(self._token(), encoding="utf-8")
                if self._is_own(final):
                    os.replace(final, old)
                elif os.path.lexists(final):
                    kept = final.with_name(f"{final.name}.kept-{secrets.token_hex(4)}")
                    os.replace(final, kept)
                    report(f"{final} was not written by this run: renamed to {kept.name}")
                os.replace(temporary, final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)
        return final

    def _token(self) -> str:
        return token_of(self._settings or self.settings())

    def _temporary_folder(self) -> Path:
        return self.folder / f"final-{self._token()}-{secrets.token_hex(4)}.tmp"

    def _is_own(self, final: Path) -> bool:
        """Whether it is a folder that this run wrote."""
        try:
            owner = (final / OWNER).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return False
        return owner == self._token() and not final.is_symlink()

    def _whole_parts(self) -> dict[Path, tuple[list[str], dict[str, Any]]]:
        """Ids and settings of each part; damaged parts are set aside."""
        whole = {}
        for path in self.parts():
            try:
                whole[path] = _header(path)
            except DamagedPartError as error:
                aside = path.with_name(f"{path.name}.damaged")
                try:
                    os.rename(path, aside)
                    outcome = f"renamed to {aside.name}"
                except OSError as cause:
                    outcome = f"left there ({reason_of(cause)})"
                report(f"{path} is {error.got.removeprefix('a ')}: {outcome}; not counted as done")
        return whole

    def _settings_of_parts(self, settings: dict[str, Any], started: bool) -> list[dict[str, Any]]:
        """What the parts carry. Raises ProbeError for parts of another run, and for parts without
        settings where there is no `run.json` either.
        """
        found = []
        for path, (_, run) in self._whole_parts().items():
            if run:
                refuse_another_run(path, run, settings, "computed")
                found.append(run)
            elif not started:
                raise ProbeError(
                    "run",
                    expected=f"run.json in {self.folder}, which holds parts",
                    got="none",
                    fix="restore it, or use another --out",
                )
        return found

    def _blocks(self, order: Iterable[str], block: int) -> Iterator[Labelled]:
        """The samples in order, `block` at a time, all with the same lengths along ragged
        dimensions.
        """
        ids = {path: _header(path)[0] for path in self.parts()}
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

    def _remove_stale_files(self) -> None:
        """Removes what workers of this run left unfinished: only names with its token."""
        ending = rf"{self._token()}-[0-9a-f]{{8}}\.tmp"
        names = {
            self.folder: rf"final-{ending}",
            self.folder / "parts": rf"\.part-.+\.zarr\.zip\.{ending}",
        }
        for folder, name in names.items():
            for path in folder.glob("*.tmp"):
                if not re.fullmatch(name, path.name) or path.is_symlink():
                    continue
                with contextlib.suppress(OSError):  # another worker may have been faster
                    if time.time() - path.stat().st_mtime > STALE_SECONDS:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Errors of the disk as one line."""
    try:
        yield
    except OSError as error:
        raise ProbeError(
            "run",
            expected="a run directory that can be written",
            got=f"{str(folder)!r} ({reason_of(error)})",
            fix="what is finished is kept: make it writable and give the same command again",
        ) from error


def _header(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Ids and settings of a part; read once, as long as the file does not change."""
    try:
        stat = path.stat()
    except OSError as error:
        got = reason_of(error)
        raise ProbeError("run", expected=f"a part that can be read in {path}", got=got) from None
    return _read_header(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1 << 18)
def _read_header(path: Path, *_: int) -> tuple[list[str], dict[str, Any]]:
    return read_part_header(path)


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
            self.run.write(join(self.waiting))
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
