"""Official files: JSON, JSON lines, tab separated tables, and images inside the data folder.

A file that cannot be read at all is a ProbeError; a row that cannot be used is a RowError, which
the reader lists. Image names come from files that others wrote, so they are resolved (symbolic
links too) before they are used, and refused where they leave the folder.
"""

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from probe.data.rows import RowError
from probe.errors import ProbeError, shown

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
REPLACEMENT = "\ufffd"  # what decoding puts in the place of bytes that are not UTF-8
LISTED = 8  # files that an error message lists


class DataFolder:
    """A folder that the user gave. `called` is the verb for error messages."""

    def __init__(self, called: str, folder: str | Path):
        self.called = called
        path = Path(folder).expanduser()
        if not path.is_dir():
            reason = "a file" if path.exists() else "no such folder"
            raise ProbeError(
                called,
                expected="a folder with the official files",
                got=f"{str(folder)!r} ({reason})",
            )
        self.root = path.resolve()

    def find(self, *names: str) -> Path:
        """The first of these files that exists. Raises ProbeError with the names, and with what is
        in the folder.
        """
        path = self.look(*names)
        if path is None:
            files = sorted(path.name for path in self.root.iterdir())
            shown_files = files[:LISTED]
            if len(files) > LISTED:
                shown_files.append("...")
            listed = ", ".join(shown_files) or "nothing"
            raise ProbeError(
                self.called, expected=" or ".join(names), got=f"{listed} in {self.root}"
            )
        return path

    def look(self, *names: str) -> Path | None:
        """The first of these files that exists, or None."""
        return next((self.root / name for name in names if (self.root / name).is_file()), None)

    def image(self, *names: str) -> Path:
        """The first of these images that exists. Raises RowError where none does, or one lies
        outside the folder.
        """
        return self._first("an image", names, Path.is_file)

    def video(self, *names: str) -> Path:
        """The first of these videos, files or folders of frames, that exists. Raises RowError as
        `image` does.
        """
        return self._first("a video", names, Path.exists)

    def _first(self, what: str, names: Sequence[str], exists: Callable[[Path], bool]) -> Path:
        for name in names:
            path = self._inside(what, name)
            with contextlib.suppress(OSError):  # a name longer than the file system takes
                if exists(path):
                    return path
        _, noun = what.split()
        raise RowError(f"the {noun} {shown(names[0])}", "no such file")

    def _inside(self, what: str, name: str) -> Path:
        try:
            path = (self.root / name).resolve()
        except (ValueError, OSError, RuntimeError):  # a NUL in the name, links in a circle
            raise RowError(f"the name of {what}", shown(name)) from None
        if Path(name).is_absolute() or not path.is_relative_to(self.root):
            raise RowError(f"{what} inside the data folder", shown(name))
        return path


def read_json(called: str, path: Path) -> tuple[Any, set[str]]:
    """The content of a JSON file, and the keys that one of its objects repeats (the first value is
    kept).

    Raises ProbeError with the file, line and column at which it stops being JSON.
    """
    repeated: set[str] = set()

    def keep_first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in pairs:
            if key in kept:
                repeated.add(key)
            else:
                kept[key] = value
        return kept

    text = _text(called, path)
    try:
        return json.loads(text, object_pairs_hook=keep_first), repeated
    except json.JSONDecodeError as error:
        at_end = ", where the file ends" if error.pos >= len(text.rstrip()) else ""
        raise ProbeError(
            called,
            expected=f"whole JSON in {path.name}",
            got=f"{error.msg.lower()} at line {error.lineno}, column {error.colno}{at_end}",
            fix="download it again",
        ) from None
    except RecursionError:
        raise ProbeError(
            called, expected=f"JSON in {path.name}", got="brackets nested without end"
        ) from None
    except ValueError as error:  # Python reads no numbers of more than 4,300 digits
        reason = str(error).split(";")[0].lower()
        raise ProbeError(
            called, expected=f"JSON in {path.name}", got=f"a number that cannot be read ({reason})"
        ) from None


def json_list(called: str, path: Path, *keys: str) -> list[Any]:
    """The list in a JSON file: the whole content, or what it has under `keys`. Raises
    ProbeError.
    """
    value, _ = read_json(called, path)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, list):
        where = f" under {'.'.join(keys)!r}" if keys else ""
        raise ProbeError(called, expected=f"a list{where} in {path.name}", got=shown(value))
    return value


def json_object(called: str, path: Path) -> tuple[dict[str, Any], set[str]]:
    """The object in a JSON file, and the keys that it repeats. Raises ProbeError."""
    value, repeated = read_json(called, path)
    if not isinstance(value, dict):
        raise ProbeError(called, expected=f"an object in {path.name}", got=shown(value))
    return value, repeated & value.keys()


def unrepeated_object(called: str, path: Path) -> dict[str, Any]:
    """The object in a JSON file whose keys stand once each. Raises ProbeError for one that repeats
    a key: which of its values is meant can't be said.
    """
    value, repeated = json_object(called, path)
    if repeated:
        first = min(repeated)
        expected = f"each key of {path.name} once"
        raise ProbeError(called, expected=expected, got=f"{first!r} several times")
    return value


def lines(called: str, path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers (from 1) and contents of the lines that are not blank."""
    content = _bytes(called, path).removeprefix(BYTE_ORDER_MARK)
    for number, line in enumerate(content.split(b"\n"), 1):
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
        text = line.decode("utf-8", "replace").strip()
        raise RowError("one JSON object on a line", shown(text)) from None


def table(
    called: str, path: Path, columns: tuple[str, ...]
) -> Iterator[tuple[int, list[str], dict[str, str]]]:
    """Rows of a tab separated file with a header: line number, the raw cells, and the cells by
    column.

    Raises ProbeError when a column is missing. Cells may be as long as an image and span lines when
    quoted. A row without a cell for each column comes with an empty dict: pass it to `whole_row`.
    """
    # a setting of the process; images exceed its default of 128 kB
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file, delimiter="\t")
            header = next(reader, [])
            missing = ", ".join(column for column in columns if column not in header)
            if missing:
                raise ProbeError(
                    called,
                    expected=f"{path.name} with the columns {', '.join(columns)}",
                    got=f"{shown(header, 200)} without {missing}",
                )
            start = reader.line_num + 1
            for cells in reader:
                if cells:
                    is_whole = len(cells) == len(header)
                    yield start, cells, dict(zip(header, cells, strict=True)) if is_whole else {}
                start = reader.line_num + 1
    except (OSError, csv.Error) as error:
        raise ProbeError(
            called, expected=f"a tab separated table in {path.name}", got=str(error)
        ) from None
    finally:
        csv.field_size_limit(limit)


def whole_row(cells: list[str], row: dict[str, str]) -> dict[str, str]:
    """The row, if it has a cell for each column and is UTF-8 text. Raises RowError."""
    if not row:
        raise RowError(
            "a cell for every column", f"{len(cells)} cells, the first {shown(cells[0])}"
        )
    for name, cell in row.items():
        if REPLACEMENT in cell:
            raise RowError(f"UTF-8 text in column {name!r}", shown(cell))
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
