"""`probe reduce`: token reducers (and other models) on a benchmark: accuracy against vision tokens,
work and time.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probe.cli.benchmark_run import read_task, write_problems
from probe.cli.cost import time_and_memory, with_unit
from probe.cli.engine import EngineOptions, measured
from probe.cli.options import BenchmarkOptions, CacheGB, Longest, ModelOptions, Out, with_options
from probe.cli.output import say, show_table, stage
from probe.cli.result_folder import ResultFolder, results
from probe.errors import ProbeError, one_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from probe.evaluation.method_comparison import Method
    from probe.evaluation.task import BenchmarkTask
    from probe.subject.subject import Subject

# By default; `probe.reducers.METHODS` has more
BY_DEFAULT = "visionzip,prumerge,random,grid,fastv,pyramiddrop,sparsevlm"
KEEP = "0.5,0.25,0.11"

Reducers = Annotated[
    str,
    typer.Option(help=f"several with commas: {BY_DEFAULT}; dominant, contextual, prumerge+ ..."),
]
Keep = Annotated[
    str, typer.Option(help="fractions of vision tokens that are kept, several with commas")
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
    Path | None, typer.Option(help="CSV of method, vision_tokens, percent_of_vanilla to overlay")
]
PublishedTokens = Annotated[
    int, typer.Option(min=1, help="vision tokens of the published model without a reducer")
]
Repeats = Annotated[
    int, typer.Option(min=0, help="of the time to the first token, on three images; 0: none")
]


@with_options
def reduce(
    loading: ModelOptions,
    asked: BenchmarkOptions,
    engine: EngineOptions,
    reducers: Reducers = BY_DEFAULT,
    keep: Keep = KEEP,
    beside: Beside = None,
    repeats: Repeats = 5,
    published: Published = None,
    published_tokens: PublishedTokens = 576,
    max_new_tokens: Longest = 32,
    cache_gb: CacheGB = 2.0,
    out: Out = Path("probe-out/reduce"),
) -> None:
    """Leave fewer vision tokens by several methods and score the answers: a table, a figure, a
    dataset. It resumes.
    """
    with results("reduce", out, shows_finished=True) as folder:
        kinds, fractions = methods_named(reducers), fractions_kept(keep)
        _check_published(published)
        task = read_task(asked)
        engine.launch()
        from probe.evaluation.method_comparison import Comparison
        from probe.evaluation.method_scores import method_scores

        loading = engine.placed(loading)
        subject = loading.subject()
        others = [loading.subject(name) for name in _others(loading.model, beside)]
        methods = methods_of(subject, kinds, fractions, others)
        comparison = Comparison(methods, task, max_new_tokens=max_new_tokens, cache_gb=cache_gb)
        to = f" to {len(comparison.methods)} methods"
        run = measured(comparison, folder, engine, to=to)
        problems = write_problems(run, task, folder)
        if folder.refusal is None:
            run.compact([sample.id for sample in comparison.samples])
        answers = comparison.results(run)
        with stage("measuring time and memory"):
            costs = comparison.costs(answers, repeats)
        table = with_costs(method_scores(answers), costs)
        _write(answers, costs, table, folder, published, published_tokens)
    show_scores(table, task)
    say("left out", problems)
    folder.announce("final.zarr", "run.json")


def methods_named(reducers: str) -> list[str]:
    """The names that were asked for, each once. Raises ProbeError for an unknown one."""
    from probe.reducers import METHODS

    names = [name.strip().lower() for name in reducers.split(",") if name.strip()]
    for name in names:
        one_of("--reducers", "names of", name, METHODS)
    return list(dict.fromkeys(names))


def fractions_kept(keep: str) -> list[float]:
    """ "0.5,0.25" -> [0.5, 0.25]. Raises ProbeError for anything else."""
    try:
        values = [float(word) for word in keep.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < 1 for value in values):
        expected = "fractions between 0 and 1 with commas between them"
        raise ProbeError("--keep", expected=expected, got=repr(keep))
    return list(dict.fromkeys(values))


def _check_published(published: Path | None) -> None:
    """Raises ProbeError for a CSV that can't be drawn: before the run and not after it."""
    if published is not None:
        from probe.plots.reducer_tradeoff import read_published

        read_published(published)


def _others(model: str, names: list[str] | None) -> list[str]:
    """By default the shipped LLaVA-Mini goes with the shipped LLaVA, and none with other models."""
    from probe.models.tiny import FOLDERS

    shipped = [name for name in FOLDERS if name != model] if model in FOLDERS else []
    return shipped if names is None else names


def methods_of(
    subject: "Subject", kinds: list[str], fractions: list[float], others: "list[Subject]"
) -> "list[Method]":
    """The subject as it is, under each reducer for each fraction, and the other models. A label
    gives the tokens that a reducer really leaves; two fractions that leave equally many are one.
    """
    from probe.evaluation.method_comparison import Method
    from probe.reducers import METHODS, TokenBudget

    methods = {"all tokens": Method("all tokens", subject)}
    for kind in kinds:
        label, make = METHODS[kind]
        for fraction in fractions:
            budget = TokenBudget.of(subject.model, fraction)
            exact = budget.tokens == round(fraction * budget.patches)
            kept = f"{100 * fraction:.3g} %" if exact else f"{budget.tokens} tokens"
            name = f"{label} {kept}"
            methods.setdefault(name, Method(name, subject, (make(budget),), family=label))
    methods |= {other.name: Method(other.name, other, family=other.name) for other in others}
    return list(methods.values())


def with_costs(table: "pd.DataFrame", costs: "xr.Dataset") -> "pd.DataFrame":
    """`scores` with the columns of the table of costs."""
    from probe.measures.cost import table as cost_rows

    rows = cost_rows(costs).drop(columns=["vision_tokens"]).rename(columns={"case": "method"})
    return table.merge(rows, on="method", how="left", validate="one_to_one")


def interval(low: float, high: float) -> str:
    """
    >>> interval(50, 75), interval(float("nan"), float("nan"))
    ('50.0 to 75.0', '-')
    """
    return f"{low:.1f} to {high:.1f}" if low == low else "-"


def show_scores(table: "pd.DataFrame", task: "BenchmarkTask") -> None:
    headline = task.module.HEADLINE
    names = (headline, "95 % interval", "of all", "tokens", "operations", "formula", "ms", "peak")
    rows = []
    for row in table.to_dict("records"):
        rows.append(
            [
                row["method"],
                f"{row[headline]:.1f}",
                interval(row[f"{headline}_low"], row[f"{headline}_high"]),
                f"{row['of_first']:.0f} %",
                f"{row['vision_tokens']:.1f}",
                with_unit(1e12 * row["total (TFLOP)"], "FLOP"),
                with_unit(1e12 * row["formula (TFLOP)"], "FLOP"),
                *time_and_memory(row),
            ]
        )
    caption = (
        "tokens: vision tokens, mean over LLM layers; operations: counted, all components, to the "
        "first token; formula: of the reducers' papers, LLM only; ms: from pixels to the first "
        "token, mean ± standard deviation; -: no interval of one image, or not measured"
    )
    title = f"{task.benchmark.name}: {headline} with fewer vision tokens"
    show_table(title, {"method": "left"} | dict.fromkeys(names, "right"), rows, caption)


def _write(
    answers: "xr.Dataset",
    costs: "xr.Dataset",
    table: "pd.DataFrame",
    folder: ResultFolder,
    published: Path | None,
    published_tokens: int,
) -> None:
    from probe import plots
    from probe.measures.cost import write

    write(costs, folder.file("costs.json"))
    folder.table("reduce", table)
    with stage("drawing"):
        figure = plots.reductions(
            answers, costs, published=published, published_tokens=published_tokens
        )
        folder.figures({"reduce": figure})
