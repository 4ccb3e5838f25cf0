"""`probe view`: a record as one page to look around in, which opens in any browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probe.cli.options import Data, Debug, Out, several_numbers
from probe.cli.output import stage
from probe.cli.result_folder import results
from probe.cli.view_run import show_page, view_run
from probe.errors import ProbeError
from probe.records.archive import SUFFIX

if TYPE_CHECKING:
    from xarray import Dataset, DataTree

Files = Annotated[
    list[Path] | None,
    typer.Argument(
        help="a record, or the folder of results that it is in; two to compare; attributions of "
        "the same sample; or the folder of a run",
        show_default="a sample image, asked of the tiny model",
    ),
]
Sample = Annotated[str, typer.Option(help="which sample of the records: its number or id")]
Heads = Annotated[
    str | None,
    typer.Option(help="also single heads, from 0: 0,5,9 or all", show_default="their mean"),
]
TopK = Annotated[
    int | None,
    typer.Option(min=1, help="of a head's map only the largest patches", show_default="all"),
]
Open = Annotated[bool, typer.Option("--open", help="open the page in the browser")]


def view(
    files: Files = None,
    sample: Sample = "0",
    heads: Heads = None,
    top_k: TopK = None,
    data: Data = None,
    opens: Open = False,
    debug: Debug = False,
    out: Out = Path("probe-out/view"),
) -> None:
    """A page to look around in: where each word looked, and who looks at a box that you drag; of a
    run, the table of its samples.
    """
    chosen = heads if heads in (None, "all") else several_numbers("--heads", heads)
    if files and (files[0] / "run.json").is_file():
        return view_run(files, data, out, opens)
    files = [_record_in(file) for file in files or ()]
    with results("view", out) as folder:
        from probe.viewer import view as page_of

        records, attributions = _opened(files) if files else (_example(debug), {})
        if not files:
            folder.dataset("record", records["record.zarr.zip"])
            chosen = chosen or "all"
        others = [str(file) for file in files if str(file) not in records]
        with stage("writing the page"):
            viewer = page_of(
                *records.values(),
                sample=int(sample) if sample.isdecimal() else sample,
                heads=chosen,
                top_k=top_k,
                attributions=attributions,
                files=[*records, *others],
            )
            viewer.save(folder.file("view.html"))
    show_page(folder, "view.html", opens)


def _record_in(path: Path) -> Path:
    """The record of a folder of results, where it is one that has a record."""
    inside = path / f"record{SUFFIX}"
    return inside if inside.is_file() else path


def _opened(files: list[Path]) -> "tuple[dict[str, DataTree], dict[str, Dataset]]":
    """The records and the attributions among the files, by the names they were given."""
    import xarray as xr

    from probe.records import open_record

    with stage("reading"):
        opened = {str(file): open_record(file) for file in files}
    records = {name: one for name, one in opened.items() if isinstance(one, xr.DataTree)}
    others = {name: one for name, one in opened.items() if name not in records}
    wrong = [name for name, one in others.items() if "attribution" not in one]
    if wrong or len(records) not in (1, 2) or len(opened) < len(files):
        raise ProbeError(
            "view",
            expected="one record or two different ones, and attributions",
            got=", ".join(map(str, wrong or files)),
            fix="measure with `probe attention --maps`",
        )
    return records, {Path(name).name.removesuffix(".zarr.zip"): one for name, one in others.items()}


def _example(debug: bool) -> "dict[str, DataTree]":
    """The drawn sample image, measured on the tiny model with all that a page can show."""
    from probe.cli.options import ModelOptions, what_to_ask
    from probe.measures.attention.measure import measure

    image, question = what_to_ask(None, None)
    subject = ModelOptions(debug=debug).subject()
    with stage("measuring"):
        record = measure(subject, image, question, maps="heads", received_head=True)
    return {"record.zarr.zip": record}
