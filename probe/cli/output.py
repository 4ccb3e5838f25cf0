"""The terminal, and the folder of results: whole or not at all."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from probe.errors import ProbeError

console = Console(
    width=None if sys.stdout.isatty() else 120
)  # a file or pipe has room for every column


@contextmanager
def all_or_nothing(out: Path) -> Iterator[Path]:
    """A folder inside `out` to write into; its files move up to `out` together, once all are
    written.

    It is made before any work, so that a folder that can't be written is told at once (ProbeError).
    No file moves where one of them can't: where `out` has a folder of its name.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-")
    except OSError as error:
        raise not_writable(out, error) from error
    with unfinished as folder:
        yield Path(folder)
        moves = {file: out / file.name for file in Path(folder).iterdir()}
        _check_targets(moves)
        for file, target in moves.items():
            os.replace(file, target)


def _check_targets(moves: Mapping[Path, Path]) -> None:
    for file, target in moves.items():
        if target.is_dir() or (file.is_dir() and target.exists()):
            got = f"a {'folder' if target.is_dir() else 'file'} '{target}'"
            expected = (
                f"no folder where the {'folder' if file.is_dir() else 'file'} {file.name} goes"
            )
            raise ProbeError(
                "--out", expected=expected, got=got, fix="move it away or choose another folder"
            )


def not_writable(out: Path, error: OSError) -> ProbeError:
    got = f"'{out}' ({error.strerror or error})"
    return ProbeError(
        "--out", expected="a folder that can be written", got=got, fix="choose another folder"
    )


def quieten_libraries(debug: bool) -> None:
    """Leave the terminal to the results: warnings of transformers are for its own users, bars for
    terminals.
    """
    from transformers.utils import logging

    if not debug:
        logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
