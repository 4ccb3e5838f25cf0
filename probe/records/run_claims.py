"""Claims: which process works on which samples of a run, so that none is computed twice.

    with Claims(folder, worker="0") as claims:
        if claims.take("3fb2", samples=["q1", "q2"]):
            ...                                  # no other process works on them
            claims.mark_measured("3fb2")         # computed, but not on the disk yet
            claims.release("3fb2")               # on the disk

A claim is a file `claims/<name>.<generation>` that names host, process and time and is touched
every 30 s while its process lives. It is stale when its process is gone on the same machine, or
when it was not touched for 5 minutes; another process may then take the next generation. Only the
highest generation counts and only one process can create it, whatever the file system. A process
that ends in any orderly way (also by Ctrl-C or SIGTERM) gives its claims back; so a stale claim
that was not marked as measured tells of a process that died over these samples.
"""

import contextlib
import json
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from probe.records.run_process import Process, is_gone, is_here, this_process

TOUCHED_SECONDS = 30.0  # between two signs of life
STALE_SECONDS = 300.0  # without a sign of life of a process on another machine
POLL_SECONDS = 0.5  # between two looks at what other processes still work on
LISTED_SECONDS = 0.5  # for so long a list of the claims is used again
MEASURED = b"\nmeasured\n"


@dataclass(frozen=True)
class Claim:
    """A claim as it stands in its file. `live`: its process may still work on it."""

    name: str
    generation: int
    process: Process
    since: float  # seconds since the epoch, by the clock of its process
    samples: tuple[str, ...]
    alone: bool = True  # no other claim was worked on at the same time
    measured: bool = False
    live: bool = True

    @property
    def died(self) -> bool:
        """Whether the process ended over it without a word."""
        return not self.live and not self.measured


class Claims:
    """The claims of a run, and those of this process; given back at the end of the block."""

    def __init__(self, folder: Path, worker: str = "0", token: str = ""):
        """`token`: part of the names of temporary files, by which the run knows its own."""
        self.folder = folder / "claims"
        self.process = this_process(worker)
        self._token = token
        self._own: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._names: dict[str, list[int]] = {}  # name -> its generations
        self._listed = float("-inf")

    def __enter__(self) -> "Claims":
        self.folder.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._keep_alive, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        for name in list(self._own):
            self._give_back(name)

    def of(self, name: str) -> list[Claim]:
        """The claims that there are on a name, in order of their generations."""
        if time.monotonic() - self._listed > LISTED_SECONDS:
            self._list()
        found = [self._read(name, generation) for generation in self._names.get(name, ())]
        return [claim for claim in found if claim is not None]

    def take(self, name: str, samples: Sequence[str], *, alone: bool = True) -> bool:
        """Claims a name that is free. False where another process was faster."""
        earlier = self.of(name)
        if earlier and earlier[-1].live:
            return False
        generation = earlier[-1].generation + 1 if earlier else 1
        path = self.folder / f"{name}.{generation}"
        claim = Claim(name, generation, self.process, time.time(), tuple(samples), alone)
        if not _create(path, json.dumps(_plain(claim)), self._token):
            self._listed = float("-inf")
            return False
        self._names.setdefault(name, []).append(generation)
        with self._lock:
            self._own[name] = path
        return True

    def mark_measured(self, name: str) -> None:
        """From here on the death of this process is not held against the samples."""
        with contextlib.suppress(OSError), self._own[name].open("ab") as file:
            file.write(MEASURED)

    def release(self, name: str) -> None:
        """Ends a claim for good: also what earlier generations tell is forgotten."""
        path = self._own[name]
        for older in range(1, int(path.suffix[1:])):
            with contextlib.suppress(OSError):
                path.with_suffix(f".{older}").unlink()
        self._give_back(name)

    def forget(self, name: str) -> None:
        """Removes stale claims on a name."""
        for claim in self.of(name):
            if not claim.live:
                with contextlib.suppress(OSError):
                    (self.folder / f"{name}.{claim.generation}").unlink()
        self._listed = float("-inf")

    def all(self) -> Iterator[Claim]:
        """The highest claim on every name."""
        self._list()
        for name in list(self._names):
            claims = self.of(name)
            if claims:
                yield claims[-1]

    def _give_back(self, name: str) -> None:
        with self._lock:
            path = self._own.pop(name)
        with contextlib.suppress(OSError):
            path.unlink()
        self._names.pop(name, None)

    def _list(self) -> None:
        names: dict[str, list[int]] = {}
        with contextlib.suppress(OSError):
            for file in os.listdir(self.folder):
                name, _, generation = file.rpartition(".")
                if name and generation.isdecimal():
                    names.setdefault(name, []).append(int(generation))
        self._names = {name: sorted(generations) for name, generations in names.items()}
        self._listed = time.monotonic()

    def _read(self, name: str, generation: int) -> Claim | None:
        """None where it has just been given back."""
        path = self.folder / f"{name}.{generation}"
        try:
            content = path.read_bytes()
            touched = path.stat().st_mtime
        except FileNotFoundError:
            return None
        try:
            fields = json.loads(content.split(b"\n")[0])
            process = Process(**fields.pop("process"))
            samples = tuple(fields.pop("samples"))
            claim = Claim(name, generation, process, samples=samples, **fields)
        except (ValueError, TypeError, KeyError, AttributeError):  # not written completely
            unknown = Process("?", "?", "?", 0, "")
            claim = Claim(name, generation, unknown, touched, ())
        measured = content.endswith(MEASURED)
        return replace(claim, measured=measured, live=self._is_live(claim.process, touched))

    def _is_live(self, process: Process, touched: float) -> bool:
        if is_here(process):
            return not is_gone(process)
        if time.time() - touched < STALE_SECONDS / 2:
            return True
        return self._now() - touched < STALE_SECONDS

    def _now(self) -> float:
        """The time by the clock of the file system, which all machines share."""
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return time.time()

    def _keep_alive(self) -> None:
        while not self._ended.wait(TOUCHED_SECONDS):
            with self._lock:
                paths = list(self._own.values())
            for path in paths:
                with contextlib.suppress(OSError):
                    os.utime(path)


def _plain(claim: Claim) -> dict[str, object]:
    fields = asdict(claim)
    return {name: fields[name] for name in ("process", "since", "samples", "alone")}


def _create(path: Path, text: str, token: str) -> bool:
    """Creates a file with all its content at once; False where there is one of that name."""
    partial = path.with_name(f".{path.name}.{token}{secrets.token_hex(4)}.tmp")
    partial.write_text(text, encoding="utf-8")
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        partial.unlink()
    return True
