"""`probe heads`: take each head away, over a benchmark, and rank them by what they add to the right
answers.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from probe.cli.benchmark_run import read_task
from probe.cli.engine import EngineOptions, finished
from probe.cli.options import BenchmarkOptions, CacheGB, ModelOptions, Out, with_options
from probe.cli.output import number, say, show_table, stage
from probe.cli.result_folder import results

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

SHOWN = 12  # heads on the terminal; all are in heads.csv

Mode = Annotated[
    Literal["zero", "mean", "uniform", "no_vision"],
    typer.Option(help="what taken away means: the head's part is 0 or its mean, or its attention"),
]
Where = Annotated[
    Literal["llm", "cross", "prefusion"],
    typer.Option(
        help="the layers: the LLM's, its cross-attention to the image, LLaVA-Mini's pre-fusion"
    ),
]
Control = Annotated[
    bool, typer.Option(help="also ask about another image: what of the effect is the picture's")
]
Attention = Annotated[bool, typer.Option(help="also measure each head's attention on vision")]


@with_options
def heads(
    loading: ModelOptions,
    asked: BenchmarkOptions,
    engine: EngineOptions,
    mode: Mode = "zero",
    stack: Where = "llm",
    control: Control = True,
    attention: Attention = True,
    cache_gb: CacheGB = 2.0,
    out: Out = Path("probe-out/heads"),
) -> None:
    """Take away each head and score the right answers: a ranking with intervals, heads.csv, a
    dataset. It resumes.
    """
    with results("heads", out, shows_finished=True) as folder:
        task = read_task(asked)
        engine.launch()
        from probe.evaluation.causal_runs import HeadRun
        from probe.records.head_effects import head_effects

        subject = engine.placed(loading).subject()
        sweeping = HeadRun(
            subject,
            task,
            mode=mode,
            stack=stack,
            control=control,
            attention=attention,
            cache_gb=cache_gb,
        )
        dataset, problems = finished(sweeping, folder, engine)
        table = head_effects(dataset)
        folder.table("heads", table)
        with stage("drawing"):
            from probe import plots

            folder.figures({"heads": plots.head_effects(dataset)})
    show_heads(table, dataset)
    say("left out", problems)
    folder.announce("final.zarr", "run.json")


def show_heads(table: "pd.DataFrame", dataset: "xr.Dataset") -> None:
    """A row a head, the largest effect first."""
    shown: list[dict[str, Any]] = table.head(SHOWN).to_dict("records")
    rows = [
        [
            f"layer {row['layer'] + 1}, head {row['head'] + 1}",
            number(row["effect"]),
            f"[{number(row['effect_low'])}, {number(row['effect_high'])}]",
            number(row["picture_effect"]),
            number(row["accuracy_change"], 1),
            number(row["q"]) + (" *" if row["significant"] else ""),
        ]
        for row in shown
    ]
    columns = ("log p lost", "95 %", "of the picture", "accuracy (points)", "q")
    show_table(
        f"heads of {dataset.attrs['model']} by what they add to the right answer",
        {"head": "left"} | dict.fromkeys(columns, "right"),
        rows,
        f"{dataset.sizes['sample']} questions; nats; *: significant at a false discovery rate of "
        f"5 %; -: no interval of one image; all {len(table)} heads are in heads.csv",
    )
