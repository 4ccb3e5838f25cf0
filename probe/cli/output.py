"""The terminal, and the folder of results: whole or not at all.

    with results("attention", out) as folder:
        ...                                        # long work; `out` was checked before it
        folder.dataset("record", record)
        folder.table("attention", frame)
        folder.figures(plots.figures(record))
    folder.announce()                              # written to out/: record.zarr.zip, ...

What users typed, and what files or models say, is printed as it is: never read as markup, and
control characters are shown instead of obeyed.
"""

import hashlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from probe.errors import ProbeError, printable

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

console = Console(width=None if sys.stdout.isatty() else 120)  # a file has room for every column

MANIFEST = "results.json"  # which verb wrote which files, so that its next results replace them
ENDINGS = (".png", ".svg", ".csv", ".json", ".zip")
PATIENCE = 3.0  # seconds until a stage that still runs is named


def say(label: str, text: object = "") -> None:
    """One paragraph: a label in bold and a text, which is printed as it is."""
    paragraph = Text(label, "bold")
    paragraph.append(f" {printable(str(text))}" if str(text) else "", "not bold")
    console.print(paragraph, soft_wrap=True)


def show_table(
    title: str, headings: Mapping[str, str], rows: Sequence[Sequence[object]], caption: str = ""
) -> None:
    """A table: `headings` maps each column to "left" or "right". Cells are printed as they are."""
    table = Table(
        title=Text(printable(title)),
        min_width=min(len(title), 100),
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for heading, justify in headings.items():
        table.add_column(Text(heading), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(
            *(cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in row)
        )
    table.caption = Text(printable(caption)) if caption else None
    console.print(table)


def number(value: float, digits: int = 3) -> str:
    """A number of fixed decimals, "-" for one that there is not.

    >>> number(0.12345), number(float("nan"))
    ('0.123', '-')
    """
    return "-" if value != value else f"{value:.{digits}f}"


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Names what is going on, on stderr, once it takes more than a few seconds."""
    timer = threading.Timer(PATIENCE, lambda: print(f"probe: {name} ...", file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class ResultFolder:
    """What one verb writes: collected in a folder of its own, moved to `out` all together."""

    def __init__(self, verb: str, out: Path, unfinished: Path):
        self.verb, self.out, self.unfinished = verb, out, unfinished
        self.notes: list[str] = []

    @property
    def names(self) -> list[str]:
        return sorted(file.name for file in self.unfinished.iterdir())

    def file(self, name: str) -> Path:
        """Where to write a file of the results."""
        return self.unfinished / name

    def dataset(self, name: str, dataset: "xr.Dataset | xr.DataTree") -> None:
        from probe.records import save_record

        with self._writing():
            save_record(dataset, self.file(f"{name}.zarr.zip"))

    def table(self, name: str, frame: "pd.DataFrame", index: bool = False) -> None:
        with self._writing():
            frame.to_csv(self.file(f"{name}.csv"), index=index, float_format="%.6g")

    def figures(self, figures: "Mapping[str, Figure]") -> None:
        """Each figure as PNG and SVG; the same figure gives the same bytes."""
        import matplotlib
        import matplotlib.pyplot as plt

        with self._writing(), matplotlib.rc_context({"svg.hashsalt": "probe"}):
            for name, figure in figures.items():
                for ending, metadata in (("png", None), ("svg", {"Date": None})):
                    path = self.file(f"{name}.{ending}")
                    figure.savefig(path, dpi=150, bbox_inches="tight", metadata=metadata)
                plt.close(figure)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise not_writable(self.out, error) from error

    def announce(self, *more: str) -> None:
        """The line on what was written: figures are counted, not listed."""
        files = [name for name in self.written if not name.endswith((".png", ".svg"))]
        drawn = [Path(name).stem for name in self.written if name.endswith(".png")]
        figures = "1 figure" if len(drawn) == 1 else f"{len(drawn)} figures"
        drawn = [f"{figures} (png, svg): {', '.join(drawn)}"] if drawn else []
        say("written to", f"{self.out}/: {', '.join([*more, *files, *drawn])}")

    def finish(self) -> None:
        """Moves the files to `out`. Files that this verb wrote before and does not write now go, if
        they are as it left them; nothing else in the folder is touched.
        """
        self.written = self.names
        moves = {self.file(name): self.out / name for name in self.written}
        _check_targets(moves)
        manifest = {name: _digest(self.file(name)) for name in self.written}
        earlier = _manifest(self.out).get("files", {})
        for name in set(earlier) - set(manifest):
            old = self.out / name
            if old.is_file() and _digest(old) == earlier[name]:
                old.unlink()
        for file, target in moves.items():
            os.replace(file, target)
        self.claim(manifest)

    def claim(self, manifest: Mapping[str, str]) -> None:
        """Writes down which verb the folder belongs to, and the digests of its files."""
        text = json.dumps({"verb": self.verb, "files": manifest}, indent=1)
        (self.out / MANIFEST).write_text(text + "\n", encoding="utf-8")


@contextmanager
def results(verb: str, out: Path) -> Iterator[ResultFolder]:
    """The folder of a verb's results. It is made before any work, so that one that can't be
    written, or that holds another verb's results, is an error at once (ProbeError); where the work
    fails, no file has been moved and no empty folder stays.
    """
    made = _make(out)
    try:
        _check_folder(verb, out)
        with tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-") as unfinished:
            folder = ResultFolder(verb, out, Path(unfinished))
            yield folder
            folder.finish()
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):  # something is in it
                path.rmdir()
        raise


def _make(out: Path) -> list[Path]:
    """Makes a folder and its parents; those that were not there before."""
    missing = [path for path in (*reversed(out.parents), out) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise not_writable(out, error) from error
    return missing


def _check_folder(verb: str, out: Path) -> None:
    written_by = _manifest(out).get("verb", verb)
    if written_by != verb:
        raise ProbeError(
            "--out",
            expected=f"a new folder, or one with results of `probe {verb}`",
            got=f"'{out}' with results of `probe {written_by}`",
            fix="choose another folder",
        )
    _check_targets({out / path.name: path for path in out.iterdir() if path.suffix in ENDINGS})


def _manifest(out: Path) -> dict[str, Any]:
    try:
        content = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): str(digest) for name, digest in content["files"].items()}
        return {
            "verb": str(content["verb"]),
            "files": {n: d for n, d in files.items() if "/" not in n},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _check_targets(moves: Mapping[Path, Path]) -> None:
    for target in moves.values():
        if target.is_dir():
            raise ProbeError(
                "--out",
                expected=f"no folder where the file {target.name} goes",
                got=f"a folder '{target}'",
                fix="move it away or choose another folder",
            )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def not_writable(out: Path, error: OSError) -> ProbeError:
    got = f"'{out}' ({error.strerror or error})"
    return ProbeError(
        "--out", expected="a folder that can be written", got=got, fix="choose another folder"
    )


def quieten_libraries(debug: bool) -> None:
    """Leave the terminal to the results: transformers' warnings are for its own users, progress
    bars for terminals. Figures go to files: no window, whatever the display.
    """
    import matplotlib
    from transformers.utils import logging

    matplotlib.use("Agg")
    if not debug:
        logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
