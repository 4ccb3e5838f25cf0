"""`probe report`: one page on what was measured: figures, definitions, how to make it again."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from probe.cli.options import Debug, Out, what_to_ask
from probe.cli.output import quieten_libraries, say, stage
from probe.cli.result_folder import MANIFEST, results
from probe.errors import ProbeError

Sources = Annotated[
    list[Path] | None,
    typer.Argument(
        help="records (.zarr.zip) and folders of results",
        show_default="what is in ./probe-out; else a drawn sample is measured",
    ),
]
Form = Annotated[
    Literal["html", "markdown"],
    typer.Option("--format", help="html: one file; markdown: figures beside it"),
]
REPORTED = ("attention", "drop", "reduce", "attribute", "cost", "heads", "patch", "reliability")


def report(
    sources: Sources = None,
    form: Form = "html",
    out: Out = Path("probe-out/report"),
    debug: Debug = False,
) -> None:
    """Write one page on records and results: figures with a sentence of definition each, how they
    were made, the commands that make them again, a paragraph on methods.
    """
    quieten_libraries(debug)
    with results("report", out) as folder:
        chosen = list(sources or _finished())
        from probe.viewer.report import report as parts_of
        from probe.viewer.report_page import report_files

        if not chosen:
            chosen = [_sample_record(folder.file("record.zarr.zip"))]
        with stage("drawing"):
            parts = parts_of(chosen)
        for name, content in report_files(parts, form).items():
            folder.file(name).write_bytes(content)
    say("about", ", ".join(part.title for part in parts))
    folder.announce()


def _finished() -> list[Path]:
    """The folders of results below ./probe-out."""
    folders = (Path("probe-out") / verb for verb in REPORTED)
    return [folder for folder in folders if (folder / MANIFEST).is_file()]


def _sample_record(path: Path) -> Path:
    """Measures the shipped model on a drawn sample; the record's file."""
    import probe

    images, question = what_to_ask(None, None)
    with stage("measuring"):
        record = probe.measure(probe.load(), images, question)
    try:
        return probe.save_record(record, path)
    except OSError as error:
        got = f"{path} ({error.strerror})"
        raise ProbeError("report", expected="a folder that can be written", got=got) from None
