"""`probe describe`: what a model offers, and for what it does not, why."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from probe.cli.options import ModelOptions, with_options
from probe.cli.output import show_table, stage
from probe.errors import ProbeError

Name = Annotated[
    str | None, typer.Argument(help="a model, as for --model", show_default="that of --model")
]
Csv = Annotated[Path | None, typer.Option(help="also write the table here", show_default="no")]


@with_options
def describe(loading: ModelOptions, model_name: Name = None, csv: Csv = None) -> None:
    """Say which stacks, measures, interventions and reducers a model offers, and why not others."""
    from probe.measures.describe import describe as tried

    subject = loading.subject(model_name)
    with stage("trying"):
        description = tried(subject)
    table = description.to_dataframe()
    rows = [
        [
            Text("yes", "green") if row["available"] else Text("no", "bold red"),
            row["group"],
            row["name"],
            row["note"],
        ]
        for row in table.to_dict("records")
    ]
    headings = {"": "left", "group": "left", "what": "left", "note": "left"}
    title = f"What {description.model} ({description.architecture}) offers"
    show_table(title, headings, rows, "layers count from 1")
    if csv is not None:
        try:
            table.to_csv(csv, index=False)
        except OSError as error:
            got = f"{str(csv)!r} ({error.strerror})"
            raise ProbeError("--csv", expected="a file that can be written", got=got) from None
