"""A report: one page on what was measured, for a record, a folder of results, or several of them.

    parts = report(["probe-out/attention", "probe-out/drop"])
    Path("report.html").write_text(as_html(parts))     # figures inside: one file
    text, figures = as_markdown(parts)                 # figures beside it

Each part has its figures with a sentence of definition, the commands that make it again, how it was
made, and a paragraph for a paper's section on methods. Nothing is computed anew: a folder's figures
are those that its verb wrote, a record's are drawn from its numbers.
"""

import io
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from probe import plots
from probe.errors import ProbeError, not_empty
from probe.records import open_record
from probe.viewer.report_text import definition_of, made_by, methods, place_of

MANIFEST = "results.json"  # of a folder that a verb wrote: its verb, command and files
RUN = "run.json"
DRAWN = ("attribution", "lens")  # kinds of datasets whose plot has the same name


@dataclass(frozen=True)
class ReportFigure:
    """A figure as PNG, with what it shows."""

    name: str
    png: bytes
    definition: str


@dataclass(frozen=True)
class ReportPart:
    """One record or one folder of results."""

    title: str
    figures: tuple[ReportFigure, ...]
    made: Mapping[str, str]  # how it was made: model, versions, samples ...
    commands: tuple[str, ...]  # that make it again
    methods: str  # a paragraph for a paper


def report(sources: Sequence[str | os.PathLike[str]]) -> list[ReportPart]:
    """A part for each source: a file that `save_record` wrote, or a folder that a verb wrote.

    Raises ProbeError for no source, and for one that is neither.
    """
    sources = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    not_empty("report", "record or folder of results", sources)
    return [_part(Path(source)) for source in sources]


def _part(source: Path) -> ReportPart:
    if source.is_dir():
        return _part_of_folder(source)
    record = open_record(source)
    made = made_by(record.attrs, record)
    kind, method = (str(record.attrs.get(name) or "") for name in ("kind", "method"))
    return ReportPart(
        title=source.name.removesuffix(".zarr.zip"),
        figures=tuple(
            ReportFigure(name, _png(figure), definition_of(name, kind, method))
            for name, figure in _drawn(record).items()
        ),
        made=made,
        commands=(*_written_by(source), *_drawing(source, record.attrs.get("kind"))),
        methods=methods(record.attrs, made, kind or "attention"),
    )


def _written_by(source: Path) -> tuple[str, ...]:
    """The command that wrote a file; () where the folder does not say."""
    manifest = _json(source.parent / MANIFEST)
    is_known = source.name in manifest.get("files", ()) and manifest.get("command")
    return (str(manifest["command"]),) if is_known else ()


def _drawing(source: Path, kind: str | None) -> tuple[str, ...]:
    """The command that draws the figures of a file again; () for a dataset without a figure."""
    opened = f"probe.open_record({json.dumps(str(source))})"
    drawn = f'probe.plots.{kind}({opened}).figure.savefig("{kind}.png")'
    if kind not in (None, *DRAWN):
        return ()
    if kind is None:
        figures = f"probe.plots.figures({opened}).items()"
        drawn = f'[figure.savefig(name + ".png") for name, figure in {figures}]'
    return (f"python -c {shlex.quote(f'import probe; {drawn}')}",)


def _drawn(record: Any) -> dict[str, Figure]:
    """The figures of a record, or of another dataset that was saved as one."""
    kind = record.attrs.get("kind")
    if kind is None:
        return plots.figures(record)
    dataset = record.to_dataset() if isinstance(record, xr.DataTree) else record
    if kind not in DRAWN:
        return {}
    return {kind: getattr(plots, kind)(dataset).figure}


def _part_of_folder(folder: Path) -> ReportPart:
    manifest = _json(folder / MANIFEST)
    if "verb" not in manifest:
        raise ProbeError(
            "report",
            expected="a record (.zarr.zip), or a folder that a verb of probe has finished",
            got=f"the folder {str(folder)!r} without {MANIFEST}",
            fix="finish the run with the command that began it",
        )
    images = [name for name in manifest["files"] if name.endswith(".png")]
    verb = str(manifest["verb"])
    images.sort(key=lambda name: place_of(Path(name).stem))
    attrs, counted = _attrs_of(folder)
    made = made_by(attrs, counted)
    method = str(attrs.get("method") or "")
    command = str(manifest.get("command", "")) or f"probe {verb} --out {folder}"
    return ReportPart(
        title=f"probe {verb}: {folder.name}",
        figures=tuple(
            ReportFigure(stem, _bytes(folder / name), definition_of(stem, verb, method))
            for name, stem in ((name, Path(name).stem) for name in images)
        ),
        made=made,
        commands=(command,),
        methods=methods(attrs, made, verb),
    )


def _attrs_of(folder: Path) -> tuple[dict[str, Any], xr.DataTree | None]:
    """How the results in a folder were made: from its run, or from the first record in it."""
    settings = _json(folder / RUN)
    records = sorted(folder.glob("*.zarr.zip"))
    record = open_record(records[0]) if records else None
    attrs = dict(record.attrs) if record is not None else {}
    if settings:
        made = settings.get("fingerprint", {})
        plan, versions = made.get("plan", {}), settings.get("versions", {})
        attrs = {
            "model": made.get("model", ""),
            "revision": made.get("revision", ""),
            "weights": plan.get("weights", ""),
            "dtype": made.get("dtype", ""),
            "attention": made.get("kernel", ""),
            **{name: plan[name] for name in ("mode", "site", "corruption") if name in plan},
            "aspect": plan.get("aspect", ""),
            "benchmark": made.get("data", {}).get("benchmark", ""),
            "split": made.get("data", {}).get("split", ""),
            "questions": str(_json(folder / "asked.json").get("samples", "")),
            **{f"{name}_version": version for name, version in versions.items()},
        } | attrs
    return attrs, record if isinstance(record, xr.DataTree) else None


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return stream.getvalue()


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        got = f"{str(file)!r} ({error.strerror})"
        raise ProbeError("report", expected="the figures of the folder", got=got) from None


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}
