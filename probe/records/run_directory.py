"""A run: results over many samples in a directory that survives crashes.

    run/
      run.json               # written once: what was computed (model, plan, data, ...)
      parts/part-<worker>-<time>-<random>.zarr.zip
                             # some samples each; complete; never changed
      failures/<worker>.jsonl
                             # samples that could not be computed, with the reason
      claims/<group>.<n>     # who works on which samples now: `run_claims.py`
      index/<worker>.jsonl   # which samples are in which part: only a cache, `run_index.py`
      asked.json             # how many samples the last command was about, and where it read them
      final.zarr/            # all as one dataset, in order; from `compact`; may be deleted

A sample is done when a part contains it; no separate list could disagree with the parts. So a run
that was interrupted or killed resumes when the same command is given again, and several workers may
write into one directory. Settings that differ from `run.json`, or from those that each part
carries, are refused by name. A part whose checksum is wrong is renamed to `*.damaged`, and its
samples are computed again. Only temporary files that carry the token of this run are ever removed.

    run = RunDirectory.open("probe-out/drop", RunFingerprint(model="tiny-llava", ...))
    run_samples(run, samples, measure)    # `run_work.py`
    run.load([sample.id for sample in samples])
"""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from probe.data.sample import Sample
from probe.errors import ProbeError, reason_of
from probe.records import run_merge
from probe.records.concat import Labelled, Node, datasets_of, ids_of, sizes_of
from probe.records.part_files import DamagedPartError, write_part
from probe.records.provenance import RunFingerprint
from probe.records.run_claims import POLL_SECONDS, Claims
from probe.records.run_failures import Failure, FailureLog
from probe.records.run_final import content_of, read_owner
from probe.records.run_index import Part
from probe.records.run_parts import RunParts
from probe.records.run_settings import (
    compare_versions,
    read_settings,
    refuse_another_run,
    settings_of,
    token_of,
    write_once,
)

ASKED = "asked.json"  # what the last command was about, for those who look on
STALE_SECONDS = 3600.0  # an unfinished part this old has lost its writer


class RunDirectory:
    """A run directory as one worker sees it."""

    def __init__(self, folder: Path, worker: str = "0"):
        self.folder = folder
        self.worker = worker
        self._settings: dict[str, Any] = {}  # of this worker, once it is open
        self._parts = RunParts(folder, worker)
        self._failures = FailureLog(folder, worker)

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

    @property
    def token(self) -> str:
        """Part of the names of this run's temporary files, with a hyphen."""
        return f"{token_of(self._settings or self.settings())}-"

    def parts(self) -> list[Path]:
        """The finished parts, in order of their names."""
        return [self.folder / "parts" / name for name in self._parts.names()]

    def done(self) -> set[str]:
        """Ids that are in a whole part. A damaged part is reported in a line and renamed, so that
        its samples are computed again.
        """
        self._parts.refresh()
        return self._parts.sample_ids()

    def newly_done(self) -> list[str]:
        """Ids in parts that were not there when this, or `done`, was asked the last time."""
        before = set(self._parts.found)
        found = self._parts.refresh(changed=False)
        return [id_ for name, part in found.items() if name not in before for id_ in part.ids]

    def write(self, data: Labelled) -> Path:
        """Writes finished samples as a part, which carries the settings of the run."""
        settings = self._settings or self.settings()
        with writing(self.folder):
            path = write_part(
                data, self.folder / "parts", self.worker, run=settings, token=self.token
            )
        nodes = {name: Node.of(dataset) for name, dataset in datasets_of(data).items()}
        self._parts.add(path, ids_of(data), settings, sizes_of(nodes))
        return path

    def todo(self, samples: Sequence[Sample], attempts: int = 2) -> list[Sample]:
        """The samples that are neither done nor have failed `attempts` times."""
        done = self.done()
        failed = self.failed_attempts()
        return [s for s in samples if s.id not in done and failed.get(s.id, 0) < attempts]

    def failed_attempts(self) -> dict[str, int]:
        """How often each sample has failed that ever did."""
        return self._failures.attempts()

    def fail(self, sample: str, error: BaseException) -> None:
        """Notes that a sample could not be computed."""
        attempt = 1 + self.failed_attempts().get(sample, 0)
        self.give_up(sample, attempt, f"{type(error).__name__}: {error}")

    def give_up(self, sample: str, attempt: int, reason: str) -> None:
        """Notes that a sample failed for the `attempt`th time."""
        with writing(self.folder):
            self._failures.add(sample, attempt, reason)

    def failures(self) -> list[Failure]:
        """Samples that failed and are not done, each with its last attempt."""
        done = self.done()
        last = {failure.id: failure for failure in self._failures}
        return [failure for failure in last.values() if failure.id not in done]

    def stream(self) -> Iterator[Labelled]:
        """One part after the other; a sample that two parts contain comes once."""
        return run_merge.stream(self.parts())

    def load(self, order: Iterable[str] = ()) -> Labelled:
        """All samples in memory: first those in `order`, then any others."""
        with self._noting_damage():
            return run_merge.load(self.folder, self.token, self._found(), order)

    def merged(self, order: Iterable[str] = ()) -> Labelled:
        """All samples, of `final.zarr` where it is made: then what is not used stays on the disk,
        so that a run of any length can be drawn. Else as `load`.
        """
        found = run_merge.merged(self.folder, self.token, self._found())
        return self.load(order) if found is None else found

    def compact(self, order: Iterable[str] = (), block: int | None = None) -> Path:
        """Writes all samples to `final.zarr`, `block` at a time (by default as many as take little
        memory), and returns its path; at once where they are there already. Of several processes
        one writes.
        """
        found = self._found()
        order = list(order)
        final = self.folder / "final.zarr"
        if read_owner(final, self.token).get("content") == content_of(found, order):
            return final
        with (
            writing(self.folder),
            self._noting_damage(),
            Claims(self.folder, self.worker, self.token) as claims,
        ):
            while not claims.take("final", []):
                time.sleep(POLL_SECONDS)
            return run_merge.compact(self.folder, self.token, found, order, block)

    def whole_parts(self) -> list[Part]:
        """What is known of the parts, by the last look at them."""
        return list(self._parts.found.values())

    def asked(self) -> int:
        """How many samples the last command was about; 0 where that is not known."""
        samples = self._noted().get("samples")
        return samples if isinstance(samples, int) else 0

    def data_folder(self) -> str:
        """Where the last command read a benchmark's files; "" where that is not known."""
        return str(self._noted().get("data", ""))

    def note(self, **facts: Any) -> None:
        """Notes for `asked` and `data_folder` what a command is about: `samples`, `data`."""
        noted = self._noted()
        if noted | facts != noted:
            with contextlib.suppress(OSError):  # only for those who look on
                (self.folder / ASKED).write_text(json.dumps(noted | facts), encoding="utf-8")

    def _noted(self) -> dict[str, Any]:
        try:
            noted = json.loads((self.folder / ASKED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def _found(self) -> list[Part]:
        """The whole parts. Raises ProbeError where there is none."""
        found = list(self._parts.refresh(strict=True).values())
        if not any(part.ids for part in found):
            raise ProbeError(
                "run", expected="at least one finished sample", got=f"none in {self.folder}"
            )
        return found

    @contextlib.contextmanager
    def _noting_damage(self) -> Iterator[None]:
        """A part that turns out to be damaged is not trusted again by the index."""
        try:
            yield
        except DamagedPartError as error:
            self._parts.distrust(error.path)
            raise

    def _settings_of_parts(self, settings: dict[str, Any], started: bool) -> list[dict[str, Any]]:
        """What the parts carry. Raises ProbeError for parts of another run, and for parts without
        settings where there is no `run.json` either.
        """
        first: dict[str, Part] = {}  # by the settings
        for part in self._parts.refresh().values():
            first.setdefault(part.settings, part)
        carried = {text: json.loads(text) for text in first}
        if not all(carried.values()) and not started:
            raise ProbeError(
                "run",
                expected=f"run.json in {self.folder}, which holds parts",
                got="none",
                fix="restore it, or use another --out",
            )
        for text, each in carried.items():
            if each:
                refuse_another_run(first[text].path, each, settings, "computed")
        return [each for each in carried.values() if each]

    def _remove_stale_files(self) -> None:
        """Removes what workers of this run left unfinished: only names with its token."""
        ending = rf"{self.token}[0-9a-f]{{8}}\.tmp"
        names = {
            self.folder: rf"final-{ending}",
            self.folder / "parts": rf"\.part-.+\.zarr\.zip\.{ending}",
            self.folder / "claims": rf"\.[0-9a-f]+\.[0-9]+\.{ending}",
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
