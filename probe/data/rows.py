"""The result of reading a benchmark: its samples, and the rows that could not be used.

A bad row is listed and skipped; it never ends a run. A reader goes through the rows of a file and
adds samples:

    reader = RowReader("pope", "random")
    for number, line in lines(path):
        with reader.row(path, number) as official:   # a RowError raised inside becomes a SkippedRow
            entry = json_line(line)
            official.update(question_id=entry["question_id"])   # what an export needs in any case
            reader.add(Sample(identifier(entry, "question_id"), ...))
    return reader.finish([path])
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from probe.data.sample import Sample
from probe.errors import ProbeError, shown

NEW_ID = "an id not used before"


@dataclass(frozen=True)
class SkippedRow:
    """A row that could not be used. `row`: the line of a text file, the position (from 1) in a JSON
    list, or a key.

    >>> print(SkippedRow("coco_pope_random.json", 3, "'label': yes or no", "'maybe'"))
    coco_pope_random.json, row 3: expected 'label': yes or no, got 'maybe'
    """

    file: str
    row: int | str
    expected: str
    got: str
    official: Mapping[str, Any] = field(default_factory=dict)
    """What an export writes of it; empty where the row is not a question of the benchmark."""

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True)
class Benchmark:
    """The samples of one split.

    Every sample's `meta` has `image` (which image: the bootstrap draws these), `kind` (the group
    that it is reported under), `unit` (samples that are scored together: MMBench's rotations, MME's
    pairs) and `question_id` as in the official file. `files` are the data files that were read;
    their hashes belong to a run's fingerprint.
    """

    name: str
    split: str
    samples: tuple[Sample, ...]
    problems: tuple[SkippedRow, ...]
    files: tuple[Path, ...]
    rows: tuple["Sample | SkippedRow", ...] = ()
    """Every official row in the order of the files, those that could not be used included: what an
    export writes. Empty where it equals `samples`."""
    note: str = ""
    """Which edition of the official files was read, where there are several."""

    @property
    def official_rows(self) -> tuple["Sample | SkippedRow", ...]:
        """The rows that an official scorer expects an answer to, in its order."""
        return self.rows or self.samples

    def limited(self, count: int) -> "Benchmark":
        """The first samples, at least `count` of them: units that are scored together stay
        together.
        """
        units: set[str] = set()
        kept: list[Sample] = []
        for sample in self.samples:
            if sample.meta["unit"] in units or len(kept) < count:
                units.add(sample.meta["unit"])
                kept.append(sample)
        return replace(self, samples=tuple(kept), rows=tuple(kept))


class RowError(Exception):
    """One row cannot be used. `RowReader.row` turns it into a SkippedRow."""

    def __init__(self, expected: str, got: str):
        super().__init__(f"expected {expected}, got {got}")
        self.expected = expected
        self.got = got


class RowReader:
    """Collects the samples of a split, and the rows that can't be used."""

    def __init__(self, name: str, split: str):
        self.name = name
        self.split = split
        self.samples: dict[str, Sample] = {}
        self.problems: list[SkippedRow] = []
        self.rows: list[Sample | SkippedRow] = []

    @contextmanager
    def row(self, file: Path, row: int | str) -> Iterator[dict[str, Any]]:
        """A RowError raised inside is listed under this row of this file.

        Yields a dictionary for what the official file says of the row. It is filled before anything
        can fail: a row that asks a question is exported, with an empty answer, even if it can't be
        used.
        """
        official: dict[str, Any] = {}
        try:
            yield official
        except RowError as bad:
            skipped = SkippedRow(file.name, row, bad.expected, bad.got, official)
            self.problems.append(skipped)
            if official:
                self.rows.append(skipped)

    def repeated(self, file: Path, keys: set[str]) -> None:
        """Lists keys that a JSON object repeats; the first value of each was kept."""
        for key in sorted(keys):
            self.problems.append(SkippedRow(file.name, key, NEW_ID, repr(key)))

    def add(self, sample: Sample) -> None:
        """Raises RowError on an id that is taken: the first row keeps it."""
        if sample.id in self.samples:
            raise RowError(NEW_ID, repr(sample.id))
        self.samples[sample.id] = sample
        self.rows.append(sample)

    def finish(self, files: Sequence[Path], note: str = "") -> Benchmark:
        """Raises ProbeError when the files had no rows at all."""
        if not self.samples and not self.problems:
            names = ", ".join(file.name for file in files)
            raise ProbeError(self.name, expected="at least one question", got=f"none in {names}")
        return Benchmark(
            name=self.name,
            split=self.split,
            samples=tuple(self.samples.values()),
            problems=tuple(self.problems),
            files=tuple(files),
            rows=tuple(self.rows),
            note=note,
        )


_KINDS = {
    str: "text",
    int: "a whole number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


def entry(row: Any, name: str, kind: type = str) -> Any:
    """`row[name]`, of that kind. Raises RowError.

    >>> entry({"question": "Is it red?"}, "question")
    'Is it red?'
    """
    if not isinstance(row, Mapping):
        raise RowError(f"an object with {name!r}", shown(row))
    expected = f"{name!r}: {_KINDS[kind]}"
    if name not in row:
        raise RowError(expected, f"only {', '.join(map(repr, row)) or 'an empty object'}")
    value = row[name]
    is_unwanted_bool = isinstance(value, bool) and kind is not bool  # True is an int for Python
    if is_unwanted_bool or not isinstance(value, kind):
        raise RowError(expected, shown(value))
    return value


def question_text(row: Any, name: str = "question") -> str:
    """Text that is not blank, unchanged. Raises RowError."""
    text = entry(row, name)
    if not text.strip():
        raise RowError(f"{name!r}: text", "nothing")
    return text


def identifier(row: Any, name: str) -> str:
    """An id, which files write as a number or as text. Raises RowError."""
    is_given = isinstance(row, Mapping) and name in row
    value = row[name] if is_given else None
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise RowError(f"{name!r}: an id", shown(value) if is_given else "none")
    return str(value)
