"""`probe drop`: take vision tokens away, layer by layer, over a benchmark, and draw what it does to
the answers.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    import pandas as pd
    from xarray import DataTree

    from probe.evaluation.drop_run import Dropping
    from probe.evaluation.task import BenchmarkTask

Windows = Annotated[
    int | None,
    typer.Option(
        min=1, help="layers of a window", show_default="4, or a quarter of the layers if less"
    ),
]
Mode = Annotated[
    Literal["all", "mask", "mask_frozen", "remove", "remove_for_good", "zero", "swap"],
    typer.Option(help="what dropped means; swap: text reads another image"),
]
Where = Annotated[
    Literal["llm", "prefusion"],
    typer.Option(help="the layers: the LLM's, or those of LLaVA-Mini's pre-fusion"),
]
Queries = Annotated[
    Literal["text", "compressed", "both"],
    typer.Option(help="who is cut off from vision in pre-fusion"),
]
Depth = Annotated[bool, typer.Option(help="also drop from each window on, and up to it")]
Attention = Annotated[
    bool, typer.Option(help="also measure the attention on vision, in the same samples")
]
Export = Annotated[
    bool, typer.Option("--export", help="also write every case's answers in the official format")
]
Judged = Annotated[
    Path | None,
    typer.Option(help="a judge's scores (llava_w, mm_vet): a file, or a folder as predictions/"),
]


def drop(
    model: Model = "tiny-llava",
    benchmark: Benchmark = "shapes",
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    windows: Windows = None,
    mode: Mode = "all",
    stack: Where = "llm",
    queries: Queries = "both",
    depth: Depth = True,
    attention: Attention = True,
    export: Export = False,
    judged: Judged = None,
    aspect: Aspect = None,
    dtype: Dtype = None,
    device: Device = None,
    attn: Attn = None,
    quantization: Quantization = None,
    max_new_tokens: Longest = 32,
    out: RunFolder = Path("probe-out/drop"),
    debug: Debug = False,
) -> None:
    """Drop vision tokens in windows of layers and score the answers: Fig. 5, accuracy.csv, a
    dataset. It resumes.
    """
    with all_or_nothing(out) as folder:
        task = task_of(benchmark, data, limit, split)
        from probe.evaluation.judge_scores import check_judged
        from probe.evaluation.judge_scores import judged as with_scores

        if judged is not None:
            check_judged(task, judged)
        from probe.evaluation.drop_run import Dropping, results

        quieten_libraries(debug)
        loading = {"dtype": dtype, "device": device, "attn": attn, "quantization": quantization}
        subject = load_subject(model, aspect=aspect, **loading)
        cases = cases_of_modes(subject, windows, mode, depth, stack)
        dropping = Dropping(
            subject,
            task,
            cases,
            stack=stack,
            queries=None if queries == "both" else queries,
            max_new_tokens=max_new_tokens,
            attention=attention,
        )
        run = _measured(dropping, out)
        problems = dealt_with(run, task, folder)
        found = (
            results(run, task) if judged is None else with_scores(results(run, task), task, judged)
        )
        run.compact([sample.id for sample in task.benchmark.samples])
        table = accuracy(found)
        _write(found, table, folder)
        drawn = ", ".join(sorted(figure.stem for figure in folder.glob("*.png")))
        if export:
            _export(found, task, folder.parent)
    console.print(case_table(table, task))
    console.print(problems, highlight=False, soft_wrap=True)
    names = f"final.zarr, accuracy.csv, run.json, figures: {drawn} (png, svg)"
    console.print(f"[bold]written to[/] {out}/: {names}", highlight=False, soft_wrap=True)


def cases_of_modes(subject, size: int | None, mode: str, depth: bool, stack: str = "llm") -> dict:
    """The cases of each mode: of all that are defined in the stack, or of one.

    Raises ProbeError for a stack that the model does not have, and for a window of more layers than
    are in it.
    """
    from probe.errors import ProbeError
    from probe.hooks.model_structure import stacks
    from probe.interventions.drop import PREFUSION_MODES
    from probe.interventions.sweep import from_layer, until_layer, windows
    from probe.interventions.sweep.visibility import SWEEP_MODES

    if stack not in (found := stacks(subject.model)):
        raise ProbeError(
            "--stack",
            expected=f"a stack of {subject.name}: llm",
            got=stack,
            fix="take a LLaVA-Mini",
        )
    layers = len(found[stack].layers)
    size = size or min(4, max(1, layers // 4))
    if size > layers:
        raise ProbeError(
            "--windows", expected=f"1 to {layers}, the layers of {subject.name}", got=str(size)
        )
    defined = SWEEP_MODES if stack == "llm" else PREFUSION_MODES
    chosen = defined if mode == "all" else [mode]
    cases: dict = {name: [windows(size)] for name in chosen}
    if depth:  # from a layer to the last one, all modes that hide vision are equal
        cases[chosen[0]] += [from_layer(size), until_layer(size)]
    return cases


def _measured(dropping: "Dropping", out: Path):
    """The run, finished; says first what it will cost."""
    from probe.records.run_directory import RunDirectory

    samples = dropping.task.with_images
    todo = RunDirectory.open(out, dropping.fingerprint()).todo(samples)
    told = f"{len(samples)} questions, {len(samples) - len(todo)} done"
    console.print(
        f"[bold]{escape(dropping.task.benchmark.name)}[/]: {told}; Ctrl-C keeps what is finished",
        highlight=False,
        soft_wrap=True,
    )
    for line in dropping.estimate(todo) if todo else ():
        console.print(escape(line), highlight=False, soft_wrap=True)
    with show_progress("drop", len(todo)) as progress:
        return dropping.run(out, progress)


def accuracy(found: "DataTree", seed: int = 0) -> "pd.DataFrame":
    """`effects`, with the benchmark's official number (over all kinds) of each case, and how sure
    it is.
    """
    import pandas as pd

    from probe.evaluation.drop_effects import ALL, effects, tables_of
    from probe.evaluation.headline import columns

    official = [
        pd.DataFrame(
            {"mode": mode, "case": table["case"].values, "kind": ALL, **columns(table, seed)}
        )
        for mode, table in tables_of(found).items()
    ]
    return effects(found, seed=seed).merge(
        pd.concat(official), on=["mode", "case", "kind"], how="left"
    )


def case_table(table: "pd.DataFrame", task: "BenchmarkTask") -> Table:
    """A row a case, a column a mode: the benchmark's official number over all questions."""
    overall, headline = table.query("kind == 'all'"), task.module.HEADLINE
    unit = getattr(task.module, "LABEL", f"{headline.replace('_', ' ')} (%)")
    title = f"{escape(task.benchmark.name)} with vision tokens dropped: {unit}"
    shown = Table(title=title, box=box.SIMPLE_HEAD)
    modes = list(dict.fromkeys(overall["mode"]))
    for heading in ("layers", *modes):
        shown.add_column(heading, justify="right" if heading in modes else "left")
    for case in dict.fromkeys(overall["case"]):
        rows = overall.query("case == @case").set_index("mode")
        cells = [
            f"{rows.loc[mode, f'official_{headline}']:.1f}" if mode in rows.index else ""
            for mode in modes
        ]
        shown.add_row(case, *("-" if cell == "nan" else cell for cell in cells))
    first = overall.iloc[0]
    shown.caption = (
        f"{first['questions']} questions on {first['images']} images; intervals are in accuracy.csv"
    )
    return shown


def _write(found: "DataTree", table: "pd.DataFrame", folder: Path) -> None:
    import matplotlib

    from probe import plots

    matplotlib.use("Agg")  # files only: no window, whatever the display
    try:
        table.to_csv(folder / "accuracy.csv", index=False, float_format="%.6g")
        for name, figure in plots.drop_figures(found).items():
            for ending in ("png", "svg"):
                figure.savefig(folder / f"{name}.{ending}", dpi=150, bbox_inches="tight")
    except OSError as error:
        raise not_writable(folder.parent, error) from error


def _export(found: "DataTree", task: "BenchmarkTask", out: Path) -> None:
    """predictions/<mode>/<case>/: the official answer file, and a list of what is where."""
    from probe.evaluation.drop_effects import tables_of
    from probe.evaluation.drop_run import predictions
    from probe.evaluation.judge_scores import folder_of

    written = {}
    for mode, table in tables_of(found).items():
        for case in map(str, table["case"].values):
            folder = out / "predictions" / folder_of(mode, case)
            folder.mkdir(parents=True, exist_ok=True)
            written[f"{mode}: {case}"] = str(
                task.export(predictions(table, case), folder).relative_to(out)
            )
    (out / "predictions" / "index.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
