"""Official files: JSON, JSON lines, tab separated tables, and images that stay inside the data
folder.

A file that cannot be read at all is a ProbeError; a row that cannot, a RowError, which the reader
lists. Image names come from files that strangers wrote, so they are resolved (symbolic links too)
before they are used, and refused where they leave the folder.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from probe.data.rows import RowError
from probe.errors import ProbeError, shown


class DataFolder:
    """A folder that the user named. `called` is who asks, for error messages."""

    def __init__(self, called: str, folder: str | Path):
        self.called = called
        path = Path(folder).expanduser()
        if not path.is_dir():
            what = "a file" if path.exists() else "no such folder"
            raise ProbeError(
                called, expected="a folder with the official files", got=f"{str(folder)!r} ({what})"
            )
        self.root = path.resolve()

    def find(self, *names: str) -> Path:
        """The first of these files that is there. Raises ProbeError with what was looked for and
        what there is.
        """
        found = self.look(*names)
        if found is None:
            there = sorted(path.name for path in self.root.iterdir())
            listed = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "") or "nothing"
            raise ProbeError(
                self.called, expected=" or ".join(names), got=f"{listed} in {self.root}"
            )
        return found

    def look(self, *names: str) -> Path | None:
        """The first of these files that is there, or None."""
        return next((self.root / name for name in names if (self.root / name).is_file()), None)

    def image(self, *names: str) -> Path:
        """The first of these images that is there. Raises RowError: none is, or one lies outside
        the folder.
        """
        return self._first("image", names, Path.is_file)

    def video(self, *names: str) -> Path:
        """The first of these videos, files or folders of frames, that is there. Raises RowError as
        `image` does.
        """
        return self._first("video", names, Path.exists)

    def _first(self, what: str, names: Sequence[str], there: Callable[[Path], bool]) -> Path:
        for name in names:
            path = _inside(self.root, name, what)
            try:
                if there(path):
                    return path
            except OSError:  # a name longer than the file system takes
                pass
        raise RowError(f"the {what} {shown(names[0])}", "no such file")


def _inside(root: Path, name: str, what: str) -> Path:
    try:
        path = (root / name).resolve()
    except (ValueError, OSError, RuntimeError):  # a NUL in the name, links in a circle
        raise RowError(f"the name of {_a(what)}", shown(name)) from None
    if Path(name).is_absolute() or not path.is_relative_to(root):
        raise RowError(f"{_a(what)} inside the data folder", shown(name))
    return path


def read_json(called: str, path: Path) -> tuple[Any, set[str]]:
    """What a JSON file holds, and the keys that one of its objects has twice (the first value is
    kept).

    Raises ProbeError with the file, line and column at which it stops being JSON.
    """
    repeated: set[str] = set()

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        kept = dict(pairs)
        if len(kept) < len(pairs):
            kept = {}
            for key, value in pairs:
                repeated.add(key) if key in kept else kept.update({key: value})
        return kept

    text = _text(called, path)
    try:
        return json.loads(text, object_pairs_hook=once), repeated
    except json.JSONDecodeError as error:
        end = ", where the file ends" if error.pos >= len(text.rstrip()) else ""
        raise ProbeError(
            called,
            expected=f"whole JSON in {path.name}",
            fix="download it again",
            got=f"{error.msg.lower()} at line {error.lineno}, column {error.colno}{end}",
        ) from None
    except RecursionError:
        raise ProbeError(
            called, expected=f"JSON in {path.name}", got="brackets nested without end"
        ) from None


def json_list(called: str, path: Path, *keys: str) -> list[Any]:
    """The list in a JSON file: all of it, or what stands under `keys`. Raises ProbeError."""
    value, _ = read_json(called, path)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, list):
        where = f" under {'.'.join(keys)!r}" if keys else ""
        raise ProbeError(called, expected=f"a list{where} in {path.name}", got=shown(value))
    return value


def json_object(called: str, path: Path) -> tuple[dict[str, Any], set[str]]:
    """The object in a JSON file, and the keys it has twice. Raises ProbeError."""
    value, repeated = read_json(called, path)
    if not isinstance(value, dict):
        raise ProbeError(called, expected=f"an object in {path.name}", got=shown(value))
    return value, repeated & value.keys()


def lines(called: str, path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers (from 1) and contents of the lines that are not blank."""
    for number, line in enumerate(
        _bytes(called, path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1
    ):
        if line.strip():
            yield number, line


def json_line(line: bytes) -> Any:
    """One line of a JSON lines file. Raises RowError.

    >>> json_line(b'{"question_id": 1}')
    {'question_id': 1}
    """
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise RowError(
            "one JSON object on a line", shown(line.decode("utf-8", "replace").strip())
        ) from None


def table(
    called: str, path: Path, columns: tuple[str, ...]
) -> Iterator[tuple[int, list[str], dict[str, str]]]:
    """Rows of a tab separated file with a header: line number, the raw cells, and the cells by
    column.

    Raises ProbeError when a column is missing. Cells may be as long as an image and span lines when
    quoted. What does not have a cell for each column is given with an empty dict: pass it to
    `whole_row`.
    """
    limit = csv.field_size_limit(
        sys.maxsize
    )  # a setting of the process; images exceed its default of 128 kB
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file, delimiter="\t")
            header = next(reader, [])
            missing = [column for column in columns if column not in header]
            if missing:
                raise ProbeError(
                    called,
                    expected=f"{path.name} with the columns {', '.join(columns)}",
                    got=f"{shown(header, 200)} without {', '.join(missing)}",
                )
            start = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield (
                        start,
                        cells,
                        dict(zip(header, cells, strict=True)) if len(cells) == len(header) else {},
                    )
                start = reader.line_num + 1
    except (OSError, csv.Error) as error:
        raise ProbeError(
            called, expected=f"a tab separated table in {path.name}", got=str(error)
        ) from None
    finally:
        csv.field_size_limit(limit)


def whole_row(cells: list[str], row: dict[str, str]) -> dict[str, str]:
    """The row, if it had a cell for each column and is UTF-8 text. Raises RowError."""
    if not row:
        raise RowError(
            "a cell for every column", f"{len(cells)} cells, the first {shown(cells[0])}"
        )
    broken = next((name for name, cell in row.items() if "\ufffd" in cell), None)
    if broken:
        raise RowError(f"UTF-8 text in column {broken!r}", shown(row[broken]))
    return row


def _text(called: str, path: Path) -> str:
    try:
        return _bytes(called, path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProbeError(
            called, expected=f"UTF-8 text in {path.name}", got=f"byte {error.start}: not UTF-8"
        ) from None


def _bytes(called: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ProbeError(
            called, expected=f"a file that can be read: {path}", got=str(error.strerror)
        ) from None


def _a(what: str) -> str:
    """The word with its article."""
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"
