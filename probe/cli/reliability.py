"""`probe reliability`: does attention predict being right? From a finished run; loads no model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from probe.cli.options import Debug, Out, Seed
from probe.cli.output import number, quieten_libraries, say, show_table, stage
from probe.cli.result_folder import results

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

SHOWN = 6  # heads of an outcome on the terminal; all are in reliability.csv

Run = Annotated[
    Path,
    typer.Argument(
        help="the --out of `probe attention --benchmark`, or its record",
        show_default="probe-out/attention",
    ),
]
Query = Annotated[
    str | None,
    typer.Option(
        help="whose attention: response, instruction, ...",
        show_default="response; of hallucination the rows before it",
    ),
]
Key = Annotated[str, typer.Option(help="to what")]
Stack = Annotated[str, typer.Option(help="the layers: llm, prefusion, ...")]
Confidence = Annotated[
    Literal["sum", "mean", "first"],
    typer.Option(help="log p of the answer, to compare with: of its tokens, or the first"),
]


def reliability(
    run: Run = Path("probe-out/attention"),
    query: Query = None,
    key: Key = "vision",
    stack: Stack = "llm",
    confidence: Confidence = "sum",
    seed: Seed = 0,
    out: Out = Path("probe-out/reliability"),
    debug: Debug = False,
) -> None:
    """Ask of a run whether attention predicts being right: AUROC of every head beside the model's
    own confidence, reliability.csv, a dataset, figures.
    """
    quieten_libraries(debug)
    with results("reliability", out) as folder:
        from probe import plots
        from probe.records.reliability import reliability as of_run
        from probe.records.reliability import reliability_table

        found = of_run(
            run,
            stack=stack,
            query_type=query,
            key_type=key,
            confidence=confidence,
            seed=seed,
        )
        table = reliability_table(found)
        folder.dataset("reliability", found)
        folder.table("reliability", table)
        with stage("drawing"):
            names = [str(name) for name in found["outcome"].values]
            folder.figures({name: plots.reliability(found, name) for name in names})
    show_heads(table, found)
    if found.attrs["left_out"]:
        say("left out", str(found.attrs["left_out"]))
    folder.announce()


def show_heads(table: "pd.DataFrame", found: "xr.Dataset") -> None:
    """For each outcome the heads with the smallest q, after the baseline."""
    for outcome in map(str, found["outcome"].values):
        of_outcome = found.sel(outcome=outcome)
        rows_of_outcome: Any = table[table["outcome"] == outcome]
        shown: list[dict[str, Any]] = rows_of_outcome.head(SHOWN).to_dict("records")
        bounds = [float(of_outcome[name]) for name in ("baseline_low", "baseline_high")]
        first = ["log p of the answer", number(float(of_outcome["baseline"]), 2), interval(*bounds)]
        rows = [] if outcome == "confident" else [[*first, "", ""]]
        rows += [
            [
                f"{row['measure']}, layer {row['layer'] + 1}, {_head(row['head'])}",
                number(row["auroc"], 2),
                interval(row["auroc_low"], row["auroc_high"]),
                interval(row["gain_low"], row["gain_high"]),
                number(row["q"]) + (" *" if row["significant"] else ""),
            ]
            for row in shown
        ]
        columns = dict.fromkeys(("AUROC", "95 %", "over log p, 95 %", "q"), "right")
        samples = int(of_outcome["samples"])
        events = int(of_outcome["events"])
        show_table(
            f"{outcome}: what tells {events} of {samples} answers from the others "
            f"({of_outcome['queries'].item()} → {found.attrs['key_type']})",
            {"": "left"} | columns,
            rows,
            "0.5 tells nothing; *: significant at a false discovery rate of 5 %; all heads are in "
            "reliability.csv",
        )


def interval(low: float, high: float) -> str:
    return f"[{number(low, 2)}, {number(high, 2)}]"


def _head(head: Any) -> str:
    return "all heads" if head == "all" else f"head {head + 1}"
