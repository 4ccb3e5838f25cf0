"""The parts of a run, and an index of them: which samples are in which part.

    parts = PartIndex(folder, worker="0")
    parts.refresh()                   # {"part-0-17...zarr.zip": Part(...)}, in order of their names
    parts.sample_ids()

A part is read and its checksum compared once, when it is first seen; a line in `index/` then stands
for it as long as the size and the time of the file stay the same. The index is only a cache: it may
be deleted, lines that are damaged are passed over, and a folder that can't be written does without.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.errors import ProbeError
from probe.records.io import SUFFIX, DamagedPartError, read_part_header, reason_of
from probe.records.provenance import content_hash
from probe.records.run_settings import report

PREFIX = "part-"


@dataclass(frozen=True)
class Part:
    """A part that is whole: the ids in it, and the digest of the settings it carries."""

    path: Path
    size: int
    time: int  # of the last change, in ns
    ids: tuple[str, ...]
    settings: str = ""  # "" where it carries none


class PartIndex:
    """The whole parts of a run, as one process knows them."""

    def __init__(self, folder: Path, worker: str = "0"):
        self.folder, self.worker = folder, worker
        self.settings: dict[str, Mapping[str, Any]] = {}  # by digest
        self._parts: dict[str, Part] = {}
        self._known: dict[tuple[str, int, int], Part] = {}  # lines of the index: name, size, time
        self._suspect: set[tuple[str, int, int]] = set()
        self._written: set[str] = set()  # settings that are in this worker's file
        self._read = False

    @property
    def found(self) -> dict[str, Part]:
        """What the last `refresh` found."""
        return self._parts

    def names(self) -> list[str]:
        """The files of parts that there are, in order."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder / "parts") as entries:
            return sorted(entry.name for entry in entries if _is_part(entry.name))
        return []

    def refresh(self, *, changed: bool = True, strict: bool = False) -> dict[str, Part]:
        """All whole parts by name. Damaged ones are reported in a line and renamed to `*.damaged`,
        so that their samples are computed again; with `strict` they raise ProbeError.

        `changed`: also looks whether files changed that were seen before; without it only new ones
        are looked at.
        """
        if not self._read:
            self._read_lines()
        self._parts = {
            name: part
            for name in self.names()
            if (part := self._part(name, self._parts.get(name), changed, strict)) is not None
        }
        return self._parts

    def sample_ids(self) -> set[str]:
        """Ids in the parts that the last `refresh` found."""
        return {name for part in self.found.values() for name in part.ids}

    def add(self, path: Path, ids: list[str], settings: Mapping[str, Any]) -> None:
        """A part that was just written."""
        digest = self._digest(settings)
        with contextlib.suppress(OSError):
            stat = path.stat()
            part = Part(path, stat.st_size, stat.st_mtime_ns, tuple(ids), digest)
            self._parts[path.name] = part
            self._append(part)

    def distrust(self, path: Path) -> None:
        """A part was found to be damaged after its line was written: it is read again."""
        part = self._parts.get(path.name)
        if part is not None:
            self._write({"suspect": path.name, "size": part.size, "time": part.time})

    def _part(self, name: str, seen: Part | None, changed: bool, strict: bool) -> Part | None:
        if seen is not None and not changed:
            return seen
        path = self.folder / "parts" / name
        try:
            stat = path.stat()
        except OSError as error:
            expected = f"a part that can be read in {path}"
            raise ProbeError("run", expected=expected, got=reason_of(error)) from None
        key = (name, stat.st_size, stat.st_mtime_ns)
        if seen is not None and (seen.size, seen.time) == key[1:]:
            return seen
        if key in self._known and key not in self._suspect:
            return self._known[key]
        try:
            ids, settings = read_part_header(path)
        except DamagedPartError as error:
            if strict:
                raise
            self._set_aside(path, error)
            return None
        digest = self._digest(settings)
        part = Part(path, stat.st_size, stat.st_mtime_ns, tuple(ids), digest)
        self._append(part)
        return part

    def _set_aside(self, path: Path, error: DamagedPartError) -> None:
        aside = path.with_name(f"{path.name}.damaged")
        try:
            os.rename(path, aside)
            outcome = f"renamed to {aside.name}"
        except OSError as cause:
            outcome = f"left there ({reason_of(cause)})"
        report(f"{path} is damaged ({error.reason}): {outcome}; not counted as done")

    def _digest(self, settings: Mapping[str, Any]) -> str:
        if not settings:
            return ""
        digest = content_hash(json.dumps(settings, sort_keys=True), length=16)
        self.settings[digest] = settings
        return digest

    def _append(self, part: Part) -> None:
        if part.settings and part.settings not in self._written:
            self._written.add(part.settings)
            self._write({"settings": self.settings[part.settings]})
        fields = {"part": part.path.name, "size": part.size, "time": part.time}
        self._write(fields | {"ids": part.ids, "run": part.settings})

    def _write(self, line: Mapping[str, Any]) -> None:
        """Appends a line with its checksum; a half-written one is passed over by readers."""
        text = json.dumps(line, separators=(",", ":"))
        content = f"\n{zlib.crc32(text.encode()):08x} {text}\n".encode()
        path = self.folder / "index" / f"{self.worker}.jsonl"
        with contextlib.suppress(OSError):  # only a cache
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as file:
                file.write(content)

    def _read_lines(self) -> None:
        self._read = True
        for line in self._lines():
            if "settings" in line:
                self._digest(line["settings"])
            elif "suspect" in line:
                self._suspect.add((line["suspect"], line["size"], line["time"]))
            else:
                path = self.folder / "parts" / line["part"]
                part = Part(path, line["size"], line["time"], tuple(line["ids"]), line["run"])
                self._known[path.name, part.size, part.time] = part
        unknown = {key for key, part in self._known.items() if part.settings not in self.settings}
        for key in unknown:  # the line of its settings was lost
            if self._known[key].settings:
                del self._known[key]

    def _lines(self) -> Iterator[dict[str, Any]]:
        for file in sorted((self.folder / "index").glob("*.jsonl")):
            try:
                lines = file.read_bytes().split(b"\n")
            except OSError:
                continue
            for line in lines:
                checksum, _, text = line.partition(b" ")
                if checksum == b"%08x" % zlib.crc32(text):
                    yield json.loads(text)


def _is_part(name: str) -> bool:
    return name.startswith(PREFIX) and name.endswith(SUFFIX)
