"""`probe reduce`: token reducers (and other models) on a benchmark: accuracy against vision tokens,
work and time; `probe reduce --bench`: all of them beside random selection and a smaller image.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe.cli.benchmark_run import read_task
from probe.cli.engine import EngineOptions, finished
from probe.cli.options import BenchmarkOptions, CacheGB, Longest, ModelOptions, Out, with_options
from probe.cli.output import say, stage
from probe.cli.reduce_tables import show_benchmark, show_scores
from probe.cli.result_folder import ResultFolder, results
from probe.errors import ProbeError, one_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from probe.evaluation.method_comparison import Method
    from probe.plots.reducer_tradeoff import Overlay
    from probe.reducers.token_budget import TokenBudget
    from probe.subject.subject import Subject

# By default; `probe.reducers.METHODS` has more
BY_DEFAULT = "visionzip,prumerge,random,grid,fastv,pyramiddrop,sparsevlm"
OF_BENCH = f"{BY_DEFAULT},vispruner,holov,vscan,hiprune,divprune,dart,downsample"
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
        others = [loading.subject(name) for name in _others(loading.model, beside)]
        budgets = budgets_of(subject, fractions)
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


def methods_named(reducers: str) -> list[str]:
    """The names that were asked for, each once. Raises ProbeError for an unknown one."""
    from probe.reducers import METHODS

    names = [name.strip().lower() for name in reducers.split(",") if name.strip()]
    for name in names:
        one_of("--reducers", "names of", name, METHODS)
    return list(dict.fromkeys(names))


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


def budgets_of(subject: "Subject", fractions: list[float]) -> "list[TokenBudget]":
    """Of these fractions; without one, those of recent papers."""
    from probe.reducers.token_budget import TokenBudget, budgets_of_papers

    if not fractions:
        return budgets_of_papers(subject.model)
    return [TokenBudget.of(subject.model, fraction) for fraction in fractions]


def methods_of(
    subject: "Subject",
    kinds: list[str],
    budgets: "list[TokenBudget]",
    others: "list[Subject]",
    seeds: int = 1,
    *,
    in_tokens: bool = False,
) -> "list[Method]":
    """The subject as it is, under each reducer for each budget (those that draw, for each seed),
    and the other models. A label gives the tokens that a reducer really leaves; two budgets of
    equally many are one.
    """
    from probe.evaluation.method_comparison import Method
    from probe.reducers import METHODS, Random

    methods = {"all tokens": Method("all tokens", subject)}
    for kind in kinds:
        label, make = METHODS[kind]
        for budget in budgets:
            in_share = budget.patches is None  # of views of any size
            if budget.patches is not None and not in_tokens:
                in_share = budget.tokens == round(budget.share * budget.patches * budget.views)
            kept = f"{100 * budget.share:.3g} %" if in_share else f"{budget.tokens} tokens"
            name = f"{label} {kept}"
            reducer = make(budget)
            used: dict[str, Any] = {name: reducer}
            if seeds > 1 and isinstance(reducer, Random):
                used = {
                    f"{name}, seed {seed}": replace(reducer, seed=seed) for seed in range(seeds)
                }
            for own, drawn in used.items():
                method = Method(own, subject, (drawn,), family=label, budget=budget.tokens)
                methods.setdefault(own, method)
    methods |= {other.name: Method(other.name, other, family=other.name) for other in others}
    return list(methods.values())


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
