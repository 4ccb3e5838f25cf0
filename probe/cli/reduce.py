"""`probe reduce`: token reducers (and other models) on a benchmark: accuracy against vision tokens,
work and time; `probe reduce --bench`: all of them beside random selection and a smaller image.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe.cli.benchmark_run import read_task
from probe.cli.cost import time_and_memory, with_unit
from probe.cli.engine import EngineOptions, finished
from probe.cli.options import BenchmarkOptions, CacheGB, Longest, ModelOptions, Out, with_options
from probe.cli.output import say, show_table, stage
from probe.cli.result_folder import ResultFolder, results
from probe.errors import ProbeError, one_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from probe.evaluation.method_comparison import Method
    from probe.evaluation.task import BenchmarkTask
    from probe.plots.reducer_tradeoff import Overlay
    from probe.reducers.token_budget import TokenBudget
    from probe.subject.subject import Subject

# By default; `probe.reducers.METHODS` has more
BY_DEFAULT = "visionzip,prumerge,random,grid,fastv,pyramiddrop,sparsevlm"
OF_BENCH = f"{BY_DEFAULT},vispruner,holov,vscan,hiprune,divprune,dart,downsample"
KEEP = "0.5,0.25,0.11"
SEEDS = 5  # of random selection in a benchmark
SHORT = {"than random": "random", "than down-sampling": "smaller", "faster": "faster"}

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


def show_benchmark(rows: "pd.DataFrame", task: "BenchmarkTask") -> None:
    """A row a method and budget: what it is worth beside its controls, and what it saves."""
    headline = task.module.HEADLINE
    names = (headline, "over random", "over smaller", "hard", "rest", "times faster", "counted")
    cells = []
    for row in rows.to_dict("records"):
        cells.append(
            [
                row["method"].replace(" tokens", ""),
                f"{row[headline]:.1f}",
                _with_interval(row, "over_random"),
                _with_interval(row, "over_smaller"),
                f"{row['hard']:.0f}" if row["hard"] == row["hard"] else "-",
                f"{row['rest']:.0f}" if row["rest"] == row["rest"] else "-",
                _with_interval(row, "speed_up", 2),
                f"{row['counted']:.2f}",
                ", ".join(word for words, word in SHORT.items() if words in row["verdict"]),
            ]
        )
    caption = (
        "in brackets 95 % intervals over images; over random, over smaller: to the mean of the "
        "random selections and to the down-sampled image of the same budget, paired; hard: mean "
        "score on what the down-sampled image gets wrong (itself 0 there), rest: on the others; "
        "times faster: to the first token, on this machine; counted: operations; not shown: what "
        "the intervals leave open or deny: better than random, than the smaller image, faster"
    )
    title = f"{task.benchmark.name}: reducers beside their controls"
    columns = {"method": "left"} | dict.fromkeys(names, "right") | {"not shown": "left"}
    show_table(title, columns, cells, caption)


def _with_interval(row: "dict[Any, Any]", name: str, digits: int = 1) -> str:
    """
    >>> _with_interval({"a": 1.0, "a_low": -2.0, "a_high": 4.0}, "a"), _with_interval({}, "a")
    ('1.0 [-2.0, 4.0]', '-')
    """
    estimate = row.get(name, float("nan"))
    if estimate != estimate:
        return "-"
    low = row[f"{name}_low"]
    high = row[f"{name}_high"]
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


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
