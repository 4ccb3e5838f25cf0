"""Lines that stand for parts of a run, so that a start reads no part: `index/<worker>.jsonl`.

    lines = IndexLines(folder, worker="0")
    lines.append(part)
    known = lines.read()              # {("part-0-17...zarr.zip", size, time): Part(...)}

Only a cache: it may be deleted; lines that are damaged are passed over (each has a checksum), and a
folder that can't be written does without. What most parts share is a line of its own.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.records.provenance import content_hash

Key = tuple[str, int, int]  # of a part: its name, size and time


@dataclass(frozen=True)
class Part:
    """A part that is whole, as its file was at `time`."""

    folder: Path
    name: str
    size: int  # in bytes
    time: int  # of the last change, in ns
    ids: tuple[str, ...]
    settings: str  # JSON, with which it was computed; "{}" where it carries none
    lengths: str  # JSON {node: {dimension: length}}, without samples

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def key(self) -> Key:
        return self.name, self.size, self.time


class IndexLines:
    """The lines of all workers, and those that this one adds."""

    def __init__(self, folder: Path, worker: str = "0"):
        self.folder = folder
        self.file = folder / "index" / f"{worker}.jsonl"
        self._told: set[str] = set()  # shared texts that are in this worker's file

    def read(self) -> dict[Key, Part]:
        """The parts that lines stand for, without those that were found damaged later."""
        shared: dict[str, str] = {}
        described: dict[Key, dict[str, Any]] = {}
        suspect: set[Key] = set()
        for line in self._lines():
            key = (line.get("part", ""), line.get("size", 0), line.get("time", 0))
            if "text" in line:
                shared[content_hash(line["text"], length=16)] = line["text"]
            elif "ids" in line:
                described[key] = line
            else:
                suspect.add(key)
        known = {}
        parts = self.folder / "parts"
        for key, line in described.items():
            settings = shared.get(line["settings"])
            lengths = shared.get(line["lengths"])
            if key not in suspect and settings is not None and lengths is not None:
                known[key] = Part(parts, *key, tuple(line["ids"]), settings, lengths)
        return known

    def append(self, part: Part) -> None:
        """Adds the line of a part."""
        settings = self._shared(part.settings)
        lengths = self._shared(part.lengths)
        self._write(_of(part) | {"ids": part.ids, "settings": settings, "lengths": lengths})

    def distrust(self, part: Part) -> None:
        """Adds that a part was found damaged, though size and time of its file are the same."""
        self._write(_of(part))

    def _shared(self, text: str) -> str:
        digest = content_hash(text, length=16)
        if digest not in self._told:
            self._told.add(digest)
            self._write({"text": text})
        return digest

    def _write(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line, separators=(",", ":"))
        content = f"\n{zlib.crc32(text.encode()):08x} {text}\n".encode()
        with contextlib.suppress(OSError):  # only a cache
            self.file.parent.mkdir(exist_ok=True)
            with self.file.open("ab") as file:
                file.write(content)

    def _lines(self) -> Iterator[dict[str, Any]]:
        for file in sorted(self.file.parent.glob("*.jsonl")):
            try:
                lines = file.read_bytes().split(b"\n")
            except OSError:
                continue
            for line in lines:
                checksum, _, text = line.partition(b" ")
                if checksum == b"%08x" % zlib.crc32(text):
                    yield json.loads(text)


def _of(part: Part) -> dict[str, Any]:
    return {"part": part.name, "size": part.size, "time": part.time}


def described(
    path: Path,
    stat: os.stat_result,
    ids: list[str],
    settings: Mapping[str, Any],
    lengths: Mapping[str, Mapping[str, int]],
) -> Part:
    """A part by what is in it."""
    texts = (json.dumps(each, sort_keys=True) for each in (settings, lengths))
    return Part(path.parent, path.name, stat.st_size, stat.st_mtime_ns, tuple(ids), *texts)
