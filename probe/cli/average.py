"""`probe average`: the average over benchmarks, as the paper prints it and as it was meant, from
finished runs.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from probe.cli.output import number, say, show_table
from probe.errors import ProbeError

Runs = Annotated[
    list[Path], typer.Argument(help="folders that `probe drop` wrote, one a benchmark")
]
Mode = Annotated[str, typer.Option(help="which mode of dropping")]


def average(runs: Runs, mode: Mode = "mask") -> None:
    """Average benchmarks over finished runs of one model: MME as the paper counts it (of 2000, as
    one of eleven), and in percent like the others."""
    from probe.evaluation.table_average import average as both

    headlines: dict[str, dict[str, float]] = {}
    for folder in runs:
        benchmark, numbers = headlines_of(folder, mode)
        if benchmark in headlines:
            raise ProbeError("average", expected="one run a benchmark", got=f"two of {benchmark}")
        headlines[benchmark] = numbers
    cases = set.intersection(*(set(numbers) for numbers in headlines.values()))
    rows = []
    for case in (case for case in next(iter(headlines.values())) if case in cases):
        row = {benchmark: numbers[case] for benchmark, numbers in headlines.items()}
        result = both(row)
        values = [*row.values(), result.as_printed, result.rescaled]
        rows.append([case, *(number(value, 2) for value in values)])
    headings = dict.fromkeys((*headlines, "as printed", "rescaled"), "right")
    show_table(f"Average over benchmarks ({mode})", {"layers": "left"} | headings, rows)
    missing = both(dict.fromkeys(headlines, 0.0)).missing
    if missing:
        say("note", f"no average without {', '.join(missing)}")


def headlines_of(folder: Path, mode: str = "mask") -> tuple[str, dict[str, float]]:
    """The benchmark of a run and its official number in every case. Raises ProbeError for a folder
    that is none.
    """
    import pandas as pd

    try:
        run = json.loads((folder / "run.json").read_text())
        benchmark = str(run["fingerprint"]["data"]["benchmark"])
        table = pd.read_csv(folder / "accuracy.csv")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        expected = "a folder that `probe drop` has finished"
        fix = "pass the --out of a `probe drop --benchmark NAME` that has ended"
        raise ProbeError("average", expected=expected, got=repr(str(folder)), fix=fix) from None
    overall = table[(table["kind"] == "all") & (table["mode"] == mode)].set_index("case")
    if overall.empty:
        modes = ", ".join(dict.fromkeys(table["mode"]))
        raise ProbeError("average", expected=f"a mode of {modes}", got=f"{mode!r} in {folder}")
    column = next(name for name in table.columns if name.startswith("official_"))
    values = overall[column].astype(float)
    return benchmark, dict(zip(map(str, overall.index), values.tolist(), strict=True))
