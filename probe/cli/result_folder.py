"""The folder of a verb's results: one result, whole or not at all.

    with results("attention", out) as folder:
        ...                                        # long work; `out` was checked before it
        folder.dataset("record", record)
        folder.table("attention", frame)
        folder.figures(plots.figures(record))
    folder.announce()                              # written to out/: record.zarr.zip, ...

`results.json` in it says which verb wrote which files, so that its next results replace them, and
by which command. Any other file is its user's: it is never removed, and renamed where a result
needs its name.
"""

import json
import os
import secrets
import shlex
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.cli.output import say
from probe.cli.worker import command_line
from probe.errors import ProbeError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

MANIFEST = "results.json"
ENDINGS = (".png", ".svg", ".csv", ".json", ".zip", ".html", ".md")


class ResultFolder:
    """What one verb writes: collected in a folder of its own, moved to `out` all together.

    `refusal`: the error of an `out` that can't be written. Its finished results can be shown, and
    nothing is written.
    """

    def __init__(self, verb: str, out: Path, unfinished: Path, refusal: ProbeError | None = None):
        self.verb = verb
        self.out = out
        self.unfinished = unfinished
        self.refusal = refusal

    @property
    def names(self) -> list[str]:
        return sorted(file.name for file in self.unfinished.iterdir())

    def file(self, name: str) -> Path:
        """Where to write a file of the results."""
        return self.unfinished / name

    def check_writable(self) -> None:
        """Raises ProbeError where the folder can only be shown."""
        if self.refusal is not None:
            raise self.refusal

    def dataset(self, name: str, dataset: "xr.Dataset | xr.DataTree") -> None:
        from probe.records import save_record

        with self._writing():
            save_record(dataset, self.file(f"{name}.zarr.zip"))

    def merged(self, name: str, folder: Path) -> None:
        """The merged samples of a run as one file."""
        from probe.records.io import save_merged

        with self._writing():
            save_merged(folder, self.file(f"{name}.zarr.zip"))

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
        if self.refusal is not None:
            say("shown from", f"{self.out}/, which can't be written: nothing in it was changed")
            return
        shown = [name for name in self.written if not name.endswith((".png", ".svg"))]
        drawn = [Path(name).stem for name in self.written if name.endswith(".png")]
        if drawn:
            figures = "1 figure" if len(drawn) == 1 else f"{len(drawn)} figures"
            has_svg = any(name.endswith(".svg") for name in self.written)
            formats = "png, svg" if has_svg else "png"
            shown.append(f"{figures} ({formats}): {', '.join(drawn)}")
        say("written to", f"{self.out}/: {', '.join([*more, *shown])}")

    def finish(self) -> None:
        """Moves the files to `out`. Files that this verb wrote before and does not write now go, if
        they are as it left them; a file of its user under one of the names is renamed.
        """
        self.written = self.names
        if self.refusal is not None:
            return
        _check_targets(self.out / name for name in self.written)
        manifest = {name: _digest(self.file(name)) for name in self.written}
        earlier = _manifest(self.out).get("files", {})
        own = {name for name, digest in earlier.items() if _has_digest(self.out / name, digest)}
        with self._writing(), _signals_wait():
            for name in own - set(manifest):
                (self.out / name).unlink()
            for name, digest in manifest.items():
                if name not in own and not _has_digest(self.out / name, digest):
                    _keep(self.out / name)
                os.replace(self.file(name), self.out / name)
            self.claim(manifest)

    def claim(self, manifest: Mapping[str, str]) -> None:
        """Writes down which verb the folder belongs to, and the digests of its files."""
        command = shlex.join(("probe", *command_line.get()))
        content = {"verb": self.verb, "command": command, "files": manifest}
        text = json.dumps(content, indent=1)
        temporary = self.unfinished / MANIFEST
        temporary.write_text(text + "\n", encoding="utf-8")
        if not _manifest(self.out):
            _keep(self.out / MANIFEST)
        os.replace(temporary, self.out / MANIFEST)


@contextmanager
def results(verb: str, out: Path, *, shows_finished: bool = False) -> Iterator[ResultFolder]:
    """The folder of a verb's results. It is made before any work, so that one that can't be
    written, or that holds another verb's results, is an error at once (ProbeError); where the work
    fails, no file has been moved and no empty folder stays.

    `shows_finished`: a folder that can't be written is not an error if it holds results of this
    verb; see `ResultFolder.refusal`.
    """
    made, refusal = _make(out)
    if refusal is not None and not (shows_finished and _manifest(out).get("verb") == verb):
        raise refusal
    try:
        _check_folder(verb, out)
        from probe.records.run_process import own_folder  # heavy

        parent = out if refusal is None else Path(tempfile.gettempdir())
        with own_folder(parent, ".unfinished-") as unfinished:
            folder = ResultFolder(verb, out, unfinished, refusal)
            yield folder
            folder.finish()
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):  # something is in it
                path.rmdir()
        raise


def _make(out: Path) -> tuple[list[Path], ProbeError | None]:
    """Makes a folder and its parents. Returns those that were not there before, and the error where
    it can't be written.
    """
    missing: list[Path] = []
    try:
        missing = [path for path in (*reversed(out.parents), out) if not path.exists()]
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return missing, not_writable(out, error)
    return missing, None


def _check_folder(verb: str, out: Path) -> None:
    written_by = _written_by(out)
    if written_by not in ("", verb):
        raise ProbeError(
            "--out",
            expected=f"a new folder, or one with results of `probe {verb}`",
            got=f"{str(out)!r} with results of `probe {written_by}`",
            fix="choose another folder",
        )
    _check_targets(path for path in out.iterdir() if path.suffix in ENDINGS)


def _written_by(out: Path) -> str:
    """The verb whose results are in the folder, or whose run is not finished yet; "" for none."""
    if manifest := _manifest(out):
        return manifest["verb"]
    try:
        run = json.loads((out / "run.json").read_text(encoding="utf-8"))
        return str(run["fingerprint"]["plan"]["verb"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _manifest(out: Path) -> dict[str, Any]:
    """The content of `results.json`; {} where there is none that a verb wrote."""
    try:
        content = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): str(digest) for name, digest in content["files"].items()}
        return {
            "verb": str(content["verb"]),
            "command": str(content.get("command", "")),
            "files": {name: digest for name, digest in files.items() if "/" not in name},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _check_targets(targets: Iterable[Path]) -> None:
    for target in targets:
        if target.is_dir():
            raise ProbeError(
                "--out",
                expected=f"no folder where the file {target.name} goes",
                got=f"a folder {str(target)!r}",
                fix="move it away or choose another folder",
            )


def _has_digest(file: Path, digest: str) -> bool:
    try:
        return file.is_file() and not file.is_symlink() and _digest(file) == digest
    except (OSError, ValueError):  # a name that no file can have
        return False


def _digest(file: Path) -> str:
    from probe.records.provenance import content_hash  # heavy

    return content_hash(file)


def _keep(file: Path) -> None:
    """Renames a file that no verb wrote, and says so."""
    if os.path.lexists(file):
        kept = file.with_name(f"{file.stem}.kept-{secrets.token_hex(4)}{file.suffix}")
        os.replace(file, kept)
        say("note", f"{file} was not written by probe, or was changed: it is now {kept.name}")


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM are obeyed at the end of the block: between two files that are moved the
    folder is not whole.
    """
    waiting: list[int] = []
    before = {}
    with suppress(ValueError):  # not the main thread, which alone receives them
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in waiting[:1]:
            signal.raise_signal(number)


def not_writable(out: Path, error: OSError | ValueError) -> ProbeError:
    got = f"{str(out)!r} ({getattr(error, 'strerror', None) or error})"
    return ProbeError(
        "--out", expected="a folder that can be written", got=got, fix="choose another folder"
    )
