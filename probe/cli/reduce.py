"""`probe reduce`: token reducers (and other models) on a benchmark: accuracy against vision tokens,
work and time; `probe reduce --bench`: all of them beside random selection and a smaller image.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probe.cli.benchmark_run import read_task
from probe.cli.engine import EngineOptions, finished
from probe.cli.options import BenchmarkOptions, CacheGB, Longest, ModelOptions, Out, with_options
from probe.cli.output import say, stage
from probe.cli.reduce_methods import (
    BY_DEFAULT,
    OF_BENCH,
    budgets_of,
    check_benchmark,
    methods_named,
    methods_of,
    possible_methods,
)
from probe.cli.reduce_tables import show_benchmark, show_scores
from probe.cli.result_folder import ResultFolder, results
from probe.errors import ProbeError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from probe.plots.reducer_tradeoff import Overlay

KEEP = "0.5,0.25,0.11"
SEEDS = 5  # of random selection in a benchmark

Bench = Annotated[
    bool,
    typer.Option(
        "--bench",
        help="every method at the budgets of recent papers, beside random selection and a smaller "
        "image: which is better than they are, on which questions, and faster",
    ),
]
Reducers = Annotated[
    str | None,
    typer.Option(
        help="several with commas: visionzip, prumerge, vispruner, dominant, contextual ...",
        show_default=BY_DEFAULT,
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        help="fractions of vision tokens that are kept, several with commas", show_default=KEEP
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(min=1, help="random selections of each size", show_default="1; 5 with --bench"),
]
Beside = Annotated[
    list[str] | None,
    typer.Option(
        "--beside",
        help="another model on the same axes; again for more",
        show_default="tiny-llava-mini",
    ),
]
Published = Annotated[
    str | None,
    typer.Option(
        help="published numbers to overlay: visionzip_llava15_7b, visionzip_llava_next_7b, or a "
        "CSV of method, vision_tokens, percent_of_vanilla",
    ),
]
PublishedTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="vision tokens of the published model without a reducer",
        show_default="576; 2880 of visionzip_llava_next_7b",
    ),
]
Repeats = Annotated[
    int, typer.Option(min=0, help="of the time to the first token, on three images; 0: none")
]


@with_options
def reduce(
    loading: ModelOptions,
    asked: BenchmarkOptions,
    engine: EngineOptions,
    bench: Bench = False,
    reducers: Reducers = None,
    keep: Keep = None,
    seeds: Seeds = None,
    beside: Beside = None,
    repeats: Repeats = 5,
    published: Published = None,
    published_tokens: PublishedTokens = None,
    max_new_tokens: Longest = 32,
    cache_gb: CacheGB = 2.0,
    out: Out = Path("probe-out/reduce"),
) -> None:
    """Leave fewer vision tokens by several methods and score the answers: a table, a figure, a
    dataset. It resumes.
    """
    with results("reduce", out, shows_finished=True) as folder:
        kinds = methods_named(reducers or (OF_BENCH if bench else BY_DEFAULT))
        fractions = fractions_kept(keep) if keep or not bench else []
        overlay = published_overlay(published, published_tokens)
        task = read_task(asked)
        engine.launch()
        from probe.evaluation.method_comparison import Comparison
        from probe.evaluation.method_scores import method_scores

        loading = engine.placed(loading)
        subject = loading.subject()
        if bench:
            check_benchmark(subject)
        others = [loading.subject(name) for name in _others(loading.model, beside)]
        budgets = budgets_of(subject, fractions)
        if reducers is None:
            kinds = possible_methods(subject, kinds, budgets[0])
        methods = methods_of(
            subject, kinds, budgets, others, seeds or (SEEDS if bench else 1), in_tokens=bench
        )
        comparison = Comparison(methods, task, max_new_tokens=max_new_tokens, cache_gb=cache_gb)
        to = f" to {len(comparison.methods)} methods"
        answers, problems = finished(comparison, folder, engine, to=to)
        with stage("measuring time and memory"):
            costs = comparison.costs(answers, repeats)
        table = with_costs(method_scores(answers), costs)
        _write(answers, costs, table, folder, overlay)
        rows = write_benchmark(answers, costs, folder) if bench else None
    if rows is None:
        show_scores(table, task)
    else:
        show_benchmark(rows, task)
    say("left out", problems)
    folder.announce("final.zarr", "run.json")


def fractions_kept(keep: str | None) -> list[float]:
    """ "0.5,0.25" -> [0.5, 0.25]. Raises ProbeError for anything else."""
    try:
        values = [float(word) for word in (keep or KEEP).split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < 1 for value in values):
        expected = "fractions between 0 and 1 with commas between them"
        raise ProbeError("--keep", expected=expected, got=repr(keep))
    return list(dict.fromkeys(values))


def published_overlay(name: str | None, tokens: int | None) -> "Overlay | None":
    """Raises ProbeError for what can't be drawn: before the run and not after it."""
    from probe.plots.reducer_tradeoff import Overlay

    return None if name is None else Overlay.of(name, tokens)


def _others(model: str, names: list[str] | None) -> list[str]:
    """By default the shipped LLaVA-Mini goes with the shipped LLaVA, and none with other models."""
    from probe.models.tiny import FOLDERS

    shipped = [name for name in FOLDERS if name != model] if model in FOLDERS else []
    return shipped if names is None else names


def with_costs(table: "pd.DataFrame", costs: "xr.Dataset") -> "pd.DataFrame":
    """`scores` with the columns of the table of costs."""
    from probe.measures.cost import table as cost_rows

    rows = cost_rows(costs).drop(columns=["vision_tokens"]).rename(columns={"case": "method"})
    return table.merge(rows, on="method", how="left", validate="one_to_one")


def _write(
    answers: "xr.Dataset",
    costs: "xr.Dataset",
    table: "pd.DataFrame",
    folder: ResultFolder,
    overlay: "Overlay | None",
) -> None:
    from probe import plots
    from probe.measures.cost import write

    write(costs, folder.file("costs.json"))
    folder.table("reduce", table)
    with stage("drawing"):
        folder.figures({"reduce": plots.reductions(answers, costs, published=overlay)})


def write_benchmark(
    answers: "xr.Dataset", costs: "xr.Dataset", folder: ResultFolder
) -> "pd.DataFrame":
    """Table and figure of the methods beside their controls."""
    from probe import plots
    from probe.evaluation.reducer_benchmark import reducer_benchmark

    rows = reducer_benchmark(answers, costs)
    folder.table("bench", rows)
    with stage("drawing"):
        folder.figures({"bench": plots.reducer_benchmark(answers, costs)})
    return rows
