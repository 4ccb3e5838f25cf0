"""`probe average`: the average over benchmarks, as the paper prints it and as it was meant, from
finished runs.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from probe.cli.output import console
from probe.errors import ProbeError

Runs = Annotated[
    list[Path], typer.Argument(help="folders that `probe drop` wrote, one a benchmark")
]


def average(
    runs: Runs, mode: Annotated[str, typer.Option(help="mode of dropping")] = "mask"
) -> None:
    """Average benchmarks over finished runs of one model: MME as the paper counts it (of 2000, as
    one of eleven), and in percent like the others."""
    from probe.evaluation.table_average import average as both

    numbers: dict[str, dict[str, float]] = {}
    for folder in runs:
        benchmark, found = headlines_of(folder, mode)
        if benchmark in numbers:
            raise ProbeError("average", expected="one run a benchmark", got=f"two of {benchmark}")
        numbers[benchmark] = found
    cases = [
        case
        for case in next(iter(numbers.values()))
        if all(case in found for found in numbers.values())
    ]
    shown = Table(title=f"Average over benchmarks ({escape(mode)})", box=box.SIMPLE_HEAD)
    for heading in ("layers", *numbers, "as printed", "rescaled"):
        shown.add_column(heading, justify="left" if heading == "layers" else "right")
    for case in cases:
        row = {name: found[case] for name, found in numbers.items()}
        result = both(row)
        values = [*row.values(), result.as_printed, result.rescaled]
        shown.add_row(case, *("-" if value != value else f"{value:.2f}" for value in values))
    console.print(shown)
    if missing := both(dict.fromkeys(numbers, 0.0)).missing:
        console.print(f"no average without {', '.join(missing)}", highlight=False, soft_wrap=True)


def headlines_of(folder: Path, mode: str = "mask") -> tuple[str, dict[str, float]]:
    """The benchmark of a run and its official number in every case. Raises ProbeError for a folder
    that is none.
    """
    import pandas as pd

    try:
        benchmark = str(
            json.loads((folder / "run.json").read_text())["fingerprint"]["data"]["benchmark"]
        )
        table = pd.read_csv(folder / "accuracy.csv")
    except (OSError, ValueError, KeyError, TypeError):
        raise ProbeError(
            "average", expected="a folder that `probe drop` has finished", got=str(folder)
        ) from None
    overall = table[(table["kind"] == "all") & (table["mode"] == mode)].set_index("case")
    if overall.empty:
        raise ProbeError(
            "average",
            expected=f"a mode of {', '.join(dict.fromkeys(table['mode']))}",
            got=f"{mode!r} in {folder}",
        )
    column = next(name for name in table.columns if name.startswith("official_"))
    return benchmark, dict(
        zip(map(str, overall.index), overall[column].astype(float).tolist(), strict=True)
    )
