"""The parts of a run: which there are, which are whole, which samples are in them.

    parts = RunParts(folder, worker="0")
    parts.refresh()                   # {"part-0-17...zarr.zip": Part(...)}, in order of their names
    parts.sample_ids()

A part is read and its checksum compared once, when it is first seen; a line of the index
(`run_index.py`) then stands for it as long as size and time of the file stay the same.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probe.errors import ProbeError, reason_of
from probe.records.archive import SUFFIX
from probe.records.part_files import DamagedPartError, read_part_header
from probe.records.run_index import IndexLines, Key, Part, described
from probe.records.run_settings import report


class RunParts:
    """The whole parts of a run, as one process knows them."""

    def __init__(self, folder: Path, worker: str = "0"):
        self.folder = folder / "parts"
        self.found: dict[str, Part] = {}  # by the last `refresh`
        self._index = IndexLines(folder, worker)
        self._known: dict[Key, Part] | None = None  # by the index

    def names(self) -> list[str]:
        """The files of parts that there are, in order."""
        return [entry.name for entry in self._entries()]

    def refresh(self, *, changed: bool = True, strict: bool = False) -> dict[str, Part]:
        """All whole parts by name. Damaged ones are reported in a line and renamed to `*.damaged`,
        so that their samples are computed again; with `strict` they raise ProbeError.

        `changed`: also looks whether files changed that were seen before; without it only new ones
        are looked at.
        """
        found = {}
        for entry in self._entries():
            part = self.found.get(entry.name)
            if part is None or changed:
                part = self._part(entry, part, strict)
            if part is not None:
                found[entry.name] = part
        self.found = found
        return found

    def sample_ids(self) -> set[str]:
        """Ids in the parts that the last `refresh` found."""
        return {name for part in self.found.values() for name in part.ids}

    def add(self, path: Path, ids: list[str], settings: Mapping[str, Any], lengths: Any) -> None:
        """Takes note of a part that was just written."""
        with contextlib.suppress(OSError):
            part = described(path, path.stat(), ids, settings, lengths)
            self.found[path.name] = part
            self._index.append(part)

    def distrust(self, path: Path) -> None:
        """A part was found damaged after it had been counted: the next start reads it."""
        if path.name in self.found:
            self._index.distrust(self.found[path.name])

    def _entries(self) -> list[os.DirEntry[str]]:
        """Not as paths, which cost more than all else where there are a hundred thousand parts."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            parts = (e for e in entries if e.name.startswith("part-") and e.name.endswith(SUFFIX))
            return sorted(parts, key=lambda entry: entry.name)
        return []

    def _part(self, entry: os.DirEntry[str], seen: Part | None, strict: bool) -> Part | None:
        try:
            stat = entry.stat()
        except OSError as error:
            expected = f"a part that can be read in {entry.path}"
            raise ProbeError("run", expected=expected, got=reason_of(error)) from None
        key = (entry.name, stat.st_size, stat.st_mtime_ns)
        if seen is not None and seen.key == key:
            return seen
        if self._known is None:
            self._known = self._index.read()
        if key in self._known:
            return self._known[key]
        path = Path(entry.path)
        try:
            part = described(path, stat, *read_part_header(path))
        except DamagedPartError as error:
            if strict:
                raise
            _set_aside(path, error)
            return None
        self._index.append(part)
        return part


def _set_aside(path: Path, error: DamagedPartError) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    try:
        os.rename(path, aside)
        outcome = f"renamed to {aside.name}"
    except OSError as cause:
        outcome = f"left there ({reason_of(cause)})"
    report(f"{path} is damaged ({error.reason}): {outcome}; not counted as done")
