"""`probe reduce`: token reducers (and other models) on a benchmark: accuracy beside vision tokens,
work and time.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from probe.cli.benchmark_run import dealt_with, show_progress, task_of
from probe.cli.options import (
    Aspect,
    Attn,
    Benchmark,
    Data,
    Debug,
    Device,
    Dtype,
    Limit,
    Longest,
    Model,
    Quantization,
    RunFolder,
    Split,
    load_subject,
)
from probe.cli.output import all_or_nothing, console, not_writable, quieten_libraries
from probe.errors import ProbeError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from probe.evaluation.method_comparison import Comparison, Method
    from probe.evaluation.task import BenchmarkTask
    from probe.subject.subject import Subject

# By default; `probe.reducers.METHODS` has more
REDUCERS = ("visionzip", "prumerge", "random", "grid", "fastv", "pyramiddrop", "sparsevlm")
BY_DEFAULT = ",".join(REDUCERS)
KEEP = "0.5,0.25,0.11"

Reducers = Annotated[str, typer.Option(help="several with commas; a wrong name lists all of them")]
Keep = Annotated[
    str, typer.Option(help="fractions of vision tokens that are left, several with commas")
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


def reduce(
    model: Model = "tiny-llava",
    reducers: Reducers = BY_DEFAULT,
    keep: Keep = KEEP,
    beside: Beside = None,
    benchmark: Benchmark = "shapes",
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    repeats: Repeats = 5,
    published: Published = None,
    published_tokens: PublishedTokens = 576,
    aspect: Aspect = None,
    dtype: Dtype = None,
    device: Device = None,
    attn: Attn = None,
    quantization: Quantization = None,
    max_new_tokens: Longest = 32,
    out: RunFolder = Path("probe-out/reduce"),
    debug: Debug = False,
) -> None:
    """Leave fewer vision tokens by several methods and score the answers: a table, a figure, a
    dataset. It resumes.
    """
    with all_or_nothing(out) as folder:
        kinds, kept = chosen(reducers), fractions(keep)
        task = task_of(benchmark, data, limit, split)
        from probe.evaluation.method_comparison import Comparison, compared
        from probe.evaluation.scores import scores

        quieten_libraries(debug)
        loading = {"dtype": dtype, "device": device, "attn": attn, "quantization": quantization}
        subject = load_subject(model, aspect=aspect, **loading)
        others = [load_subject(name, **loading) for name in _beside(model, beside)]
        comparison = Comparison(
            methods_of(subject, kinds, kept, others), task, max_new_tokens=max_new_tokens
        )
        run = _asked(comparison, out)
        problems = dealt_with(run, task, folder)
        answers = compared(run, task)
        run.compact([sample.id for sample in task.benchmark.samples])
        costs = comparison.costs(answers, repeats)
        table = merged(scores(answers), costs)
        _write(answers, costs, table, folder, published, published_tokens)
    console.print(score_table(table, task))
    console.print(problems, highlight=False, soft_wrap=True)
    names = "final.zarr, reduce.csv, costs.json, run.json, figure reduce (png, svg)"
    console.print(f"[bold]written to[/] {out}/: {names}", highlight=False, soft_wrap=True)


def chosen(reducers: str) -> list[str]:
    """The names that were asked for. Raises ProbeError for one that is none."""
    from probe.reducers import METHODS

    names = [name.strip().lower() for name in reducers.split(",") if name.strip()]
    for name in names:
        if name not in METHODS:
            raise ProbeError(
                "--reducers", expected=f"names of {', '.join(METHODS)}", got=repr(name)
            )
    return list(dict.fromkeys(names))


def fractions(keep: str) -> list[float]:
    """ "0.5,0.25" -> [0.5, 0.25]. Raises ProbeError for anything else."""
    try:
        values = [float(word) for word in keep.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < 1 for value in values):
        raise ProbeError(
            "--keep", expected="fractions between 0 and 1 with commas between them", got=repr(keep)
        )
    return list(dict.fromkeys(values))


def _beside(model: str, names: list[str] | None) -> list[str]:
    """By default the shipped LLaVA-Mini goes with the shipped LLaVA, and none with other models."""
    from probe.models.tiny import FOLDERS

    default = [name for name in FOLDERS if name != model] if model in FOLDERS else []
    return default if names is None else names


def methods_of(
    subject: "Subject", kinds: list[str], kept: list[float], others: "list[Subject]"
) -> "list[Method]":
    """The subject as it is, under each reducer for each fraction, and the other models."""
    from probe.evaluation.method_comparison import Method
    from probe.reducers import METHODS, TokenBudget

    methods = [Method("all tokens", subject)]
    for kind in kinds:
        label, method = METHODS[kind]
        for share in kept:
            reducer = method(TokenBudget.of(subject.model, share))
            methods.append(
                Method(f"{label} {100 * share:.3g} %", subject, (reducer,), family=label)
            )
    return [*methods, *(Method(other.name, other, family=other.name) for other in others)]


def _asked(comparison: "Comparison", out: Path):
    from probe.records.run_directory import RunDirectory

    samples = comparison.task.with_images
    todo = RunDirectory.open(out, comparison.fingerprint()).todo(samples)
    told = f"{len(samples)} questions to {len(comparison.methods)} methods, {len(samples) - len(todo)} done"
    console.print(
        f"[bold]{escape(comparison.task.benchmark.name)}[/]: {told}; Ctrl-C keeps what is finished",
        highlight=False,
        soft_wrap=True,
    )
    with show_progress("reduce", len(todo)) as progress:
        return comparison.run(out, progress)


def merged(table: "pd.DataFrame", costs: "xr.Dataset") -> "pd.DataFrame":
    """`scores` with the columns of `costs.table` beside them."""
    from probe.measures.cost import table as cost_rows

    rows = cost_rows(costs).drop(columns=["vision_tokens"]).rename(columns={"case": "method"})
    return table.merge(rows, on="method", how="left", validate="one_to_one")


def score_table(table: "pd.DataFrame", task: "BenchmarkTask") -> Table:
    shown = Table(
        title=f"{task.benchmark.name}: {task.module.HEADLINE} with fewer vision tokens",
        box=box.SIMPLE_HEAD,
    )
    for heading in (
        "method",
        task.module.HEADLINE,
        "",
        "of all",
        "tokens",
        "MFLOP",
        "formula",
        "ms",
        "peak (MB)",
    ):
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for _, row in table.iterrows():
        low, high = (row[f"{task.module.HEADLINE}_{end}"] for end in ("low", "high"))
        time = (
            f"{row['latency (ms)']:.1f} ± {row['spread (ms)']:.1f}" if "latency (ms)" in row else ""
        )
        peak = f"{row['peak memory (MB)']:.0f}" if "latency (ms)" in row else ""
        shown.add_row(
            escape(str(row["method"])),
            f"{row[task.module.HEADLINE]:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{row['of_first']:.0f} %",
            f"{row['vision_tokens']:.1f}",
            f"{1e6 * row['total (TFLOP)']:.4g}",
            f"{1e6 * row['formula (TFLOP)']:.4g}",
            time,
            peak,
        )
    shown.caption = (
        "tokens: vision tokens, mean over LLM layers; MFLOP: counted, all components, to the first token; "
        "formula: of the reducers' papers, LLM only; ms: from pixels to the first token"
    )
    return shown


def _write(
    answers: "xr.Dataset",
    costs: "xr.Dataset",
    table: "pd.DataFrame",
    folder: Path,
    published: Path | None,
    published_tokens: int,
) -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    from probe import plots
    from probe.measures.cost import write

    matplotlib.use("Agg")  # files only: no window, whatever the display
    figure = plots.reductions(
        answers, costs, published=published, published_tokens=published_tokens
    )
    try:
        write(costs, folder / "costs.json")
        table.to_csv(folder / "reduce.csv", index=False, float_format="%.6g")
        for ending in ("png", "svg"):
            figure.savefig(folder / f"reduce.{ending}", dpi=150, bbox_inches="tight")
        plt.close(figure)
    except OSError as error:
        raise not_writable(folder.parent, error) from error
