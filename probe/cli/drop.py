"""`probe drop`: take vision tokens away, layer by layer, over a benchmark, and draw what it does to
the answers.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from probe.cli.benchmark_run import read_task
from probe.cli.drop_cases import cases_of_modes, check_frame_parts
from probe.cli.engine import EngineOptions, finished
from probe.cli.options import BenchmarkOptions, CacheGB, Longest, ModelOptions, Out, with_options
from probe.cli.output import number, say, show_table, stage
from probe.cli.result_folder import results

if TYPE_CHECKING:
    import pandas as pd
    from xarray import DataTree

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
    typer.Option(help="which queries are cut off from vision in pre-fusion"),
]
Depth = Annotated[bool, typer.Option(help="also drop from each window on, and up to it")]
FrameParts = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="of videos: also drop the frames part by part (as many equal parts), in all layers",
        show_default="none",
    ),
]
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


@with_options
def drop(
    loading: ModelOptions,
    asked: BenchmarkOptions,
    engine: EngineOptions,
    windows: Windows = None,
    mode: Mode = "all",
    stack: Where = "llm",
    queries: Queries = "both",
    depth: Depth = True,
    frame_parts: FrameParts = None,
    attention: Attention = True,
    export: Export = False,
    judged: Judged = None,
    max_new_tokens: Longest = 32,
    cache_gb: CacheGB = 2.0,
    out: Out = Path("probe-out/drop"),
) -> None:
    """Drop vision tokens in windows of layers and score the answers: Fig. 5, accuracy.csv, a
    dataset. It resumes.
    """
    with results("drop", out, shows_finished=True) as folder:
        task = read_task(asked)
        if frame_parts is not None:
            check_frame_parts(task, mode, stack)
        from probe.evaluation.judge_scores import check_judged
        from probe.evaluation.judge_scores import judged as with_scores

        if judged is not None:
            check_judged(task, judged)
        if export:
            folder.check_writable()
            task.check_export()
        engine.launch()
        from probe.evaluation.drop_run import DropRun

        subject = engine.placed(loading).subject()
        cases = cases_of_modes(subject, task, windows, mode, depth, stack, frame_parts)
        dropping = DropRun(
            subject,
            task,
            cases,
            stack=stack,
            queries=None if queries == "both" else queries,
            max_new_tokens=max_new_tokens,
            attention=attention,
            cache_gb=cache_gb,
        )
        dataset, problems = finished(dropping, folder, engine, estimate=dropping.estimate)
        if judged is not None:
            dataset = with_scores(dataset, task, judged)
        table = accuracy(dataset)
        folder.table("accuracy", table)
        with stage("drawing"):
            from probe import plots

            folder.figures(plots.drop_figures(dataset))
        missing = _export(dataset, task, folder.out) if export else ""
    show_cases(table, task)
    say("left out", problems)
    if missing:
        say("exported", missing)
    folder.announce("final.zarr", "run.json")


def accuracy(dataset: "DataTree", seed: int = 0) -> "pd.DataFrame":
    """`effects`, with the benchmark's official number (over all kinds) of each case and its
    interval.
    """
    import pandas as pd

    from probe.evaluation.drop_effects import ALL, effects, tables_of
    from probe.evaluation.headline import columns

    official = []
    for mode, table in tables_of(dataset).items():
        labels = {"mode": mode, "case": table["case"].values, "kind": ALL}
        official.append(pd.DataFrame({**labels, **columns(table, seed)}))
    by = ["mode", "case", "kind"]
    return effects(dataset, seed=seed).merge(pd.concat(official), on=by, how="left")


def show_cases(table: "pd.DataFrame", task: "BenchmarkTask") -> None:
    """A row a case, a column a mode: the benchmark's official number over all questions."""
    overall = table.query("kind == 'all'")
    headline = task.module.HEADLINE
    unit = getattr(task.module, "LABEL", f"{headline.replace('_', ' ')} (%)")
    modes = list(dict.fromkeys(overall["mode"]))
    values = overall.set_index(["case", "mode"])[f"official_{headline}"].to_dict()
    rows = []
    for case in dict.fromkeys(overall["case"]):
        of_case = {mode: values.get((case, mode)) for mode in modes}
        cells = ["" if value is None else number(value, 1) for value in of_case.values()]
        rows.append([case, *cells])
    first = overall.iloc[0]
    images = int(first["images"])  # numpy's own would not repeat a letter
    show_table(
        f"{task.benchmark.name} with vision tokens dropped: {unit}",
        {"layers": "left"} | dict.fromkeys(modes, "right"),
        rows,
        f"{first['questions']} questions on {images} image{'s' * (images > 1)}; "
        "layers count from 1; intervals are in accuracy.csv",
    )


def _export(dataset: "DataTree", task: "BenchmarkTask", out: Path) -> str:
    """predictions/<mode>/<case>/: the official answer file, and a list of what is where. Returns
    one line on the rows that have no answer.
    """
    from probe.evaluation.drop_effects import tables_of
    from probe.evaluation.drop_run import predictions
    from probe.evaluation.judge_scores import folder_of

    written: dict[str, str] = {}
    missing = ""
    for mode, table in tables_of(dataset).items():
        for case in map(str, table["case"].values):
            folder = out / "predictions" / folder_of(mode, case)
            folder.mkdir(parents=True, exist_ok=True)
            texts = predictions(table, case)
            written[f"{mode}: {case}"] = str(task.export(texts, folder).relative_to(out))
            missing = task.missing_answers(texts)
    index = json.dumps(written, indent=1)
    (out / "predictions" / "index.json").write_text(index, encoding="utf-8")
    return missing
