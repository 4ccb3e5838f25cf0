"""`probe attention`: measure which kinds of token attend to which, and draw it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from probe.cli.benchmark_run import read_task, write_problems
from probe.cli.engine import EngineOptions, measured
from probe.cli.options import (
    BenchmarkOptions,
    CacheGB,
    Data,
    Images,
    Limit,
    Longest,
    ModelOptions,
    Out,
    Question,
    Response,
    Split,
    VideoOptions,
    what_to_ask,
    with_options,
)
from probe.cli.output import number, say, show_table, stage
from probe.cli.result_folder import ResultFolder, results
from probe.errors import ProbeError

if TYPE_CHECKING:
    from numpy import ndarray
    from pandas import DataFrame
    from xarray import DataTree

    from probe.evaluation.task import BenchmarkTask
    from probe.subject.subject import Subject

FEW = 20  # samples: with more, attention.csv has means

Types = Annotated[
    Literal["paper", "fine"], typer.Option(help="the paper's three token types, or six")
]
Maps = Annotated[
    bool, typer.Option("--maps", help="also keep token-by-patch maps of the answer's rows")
]
Heads = Annotated[
    bool, typer.Option("--heads", help="also keep what each patch receives in single heads")
]
Contribution = Annotated[
    bool, typer.Option("--contribution", help="also the size of what each type adds in each head")
]
Memory = Annotated[
    bool,
    typer.Option(
        "--memory", help="say what measuring will keep and hold (it is said where it is much)"
    ),
]
Benchmark = Annotated[
    str | None,
    typer.Option(help="measure its questions: shapes, gqa, ...; resumes", show_default="none"),
]
Figures = Annotated[
    Literal["main", "all", "none"],
    typer.Option(help="those that answer most questions, all that there are numbers for, or none"),
]


@with_options
def attention(
    loading: ModelOptions,
    frames: VideoOptions,
    image: Images = None,
    question: Question = None,
    response: Response = None,
    types: Types = "paper",
    maps: Maps = False,
    heads: Heads = False,
    contribution: Contribution = False,
    memory: Memory = False,
    benchmark: Benchmark = None,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    max_new_tokens: Longest = 32,
    cache_gb: CacheGB = 2.0,
    figures: Figures = "main",
    *,
    engine: EngineOptions,
    out: Out = Path("probe-out/attention"),
) -> None:
    """Measure which kinds of token attend to which, and draw it: a record, figures, a CSV and a
    table.
    """
    of_one = {"image": image, "question": question, "response": response}
    of_many = {"data": data, "split": split, "limit": limit}
    _check_one_source(benchmark, of_one, of_many)
    options: dict = {"types": types, "maps": maps, "max_new_tokens": max_new_tokens}
    options["contribution"] = contribution
    if heads:
        options |= {"received_head": True, "maps": "heads" if maps else False}
    with results("attention", out, shows_finished=benchmark is not None) as folder:
        if benchmark is None:
            images, question = what_to_ask(image, question, frames, loading.exif)
            from probe.measures.attention.measure import measure

            subject = loading.subject()
            _say_memory(subject, images, question, response, memory, options)
            with stage("measuring"):
                record = measure(subject, images, question, response, **options)
            notes = _provenance(record)
        else:
            frames.check(has_video=False)
            task = read_task(BenchmarkOptions(benchmark, data, split, limit))
            engine.launch()
            subject = engine.placed(loading).subject()
            record, problems = _over(
                subject, task, folder, options | {"cache_gb": cache_gb}, engine
            )
            notes = {"left out": problems}
        final = folder.out / "final.zarr" if benchmark and folder.refusal is None else None
        write_results(record, folder, figures, final)
    show_layers(record)
    for label, text in notes.items():
        say(label, text)
    folder.announce(*(["final.zarr", "run.json"] if benchmark else []))


def _say_memory(
    subject: "Subject",
    images: list,
    question: str,
    response: str | None,
    asked: bool,
    options: dict,
) -> None:
    """What measuring will take: where it is much, with --maps, and where it is asked for."""
    from probe.measures.attention.expected_memory import expected_memory, in_words, is_large
    from probe.measures.attention.stack_statistic import MeasureOptions

    counted = MeasureOptions(maps=options["maps"], contribution=options["contribution"])
    plan = expected_memory(
        subject,
        images,
        question,
        response,
        types=options["types"],
        new_tokens=options["max_new_tokens"],
        options=counted,
    )
    if asked or options["maps"] or is_large(plan):
        say("memory", in_words(plan))


def _check_one_source(benchmark: str | None, of_one: dict, of_many: dict) -> None:
    """Raises ProbeError where a benchmark and one question are asked for together."""
    wrong = of_one if benchmark else of_many
    given = [f"--{name}" for name, value in wrong.items() if value is not None and value != []]
    if given and benchmark:
        expected = "no question of its own with --benchmark"
        raise ProbeError("attention", expected=expected, got=given[0])
    if given:
        raise ProbeError("attention", expected=f"--benchmark with {given[0]}", got="none")


def _over(
    subject: "Subject",
    task: "BenchmarkTask",
    folder: ResultFolder,
    options: dict,
    engine: EngineOptions,
) -> tuple["DataTree", str]:
    """The record of a benchmark's samples, by way of a run directory; and what was left out."""
    from probe.evaluation.attention_run import AttentionRun

    attention_run = AttentionRun(subject, task, **options)
    run = measured(attention_run, folder, engine, estimate=attention_run.estimate)
    problems = write_problems(run, task, folder)
    finished = attention_run.results if folder.refusal is not None else attention_run.merged
    with stage("merging"):
        return finished(run), problems


def _provenance(record: "DataTree") -> dict[str, str]:
    """Question and answer, and how the model saw the image."""
    root = record.to_dataset()
    attrs = record.attrs
    return {
        "question": str(root["question"].values[0]).strip() or "(empty)",
        "answer": str(root["response"].values[0]).strip() or "(empty)",
        "image": f"{attrs['aspect']} (how it was fitted to the encoder)",
        "model": f"{attrs['model']}, {attrs['dtype']}, {attrs['attention']}",
    }


def write_results(
    record: "DataTree", folder: ResultFolder, figures: str, final: Path | None = None
) -> None:
    """Record, figures and table. `final`: the record of a run on the disk, which is not copied to
    record.zarr.zip where `open_record` would refuse it for its size.
    """
    from probe import plots
    from probe.records import to_dataframe
    from probe.records.archive import LARGEST

    size = sum(node.nbytes for node in record.subtree)
    with stage("drawing"):
        if final is None:
            folder.dataset("record", record)
        elif size < LARGEST / 2:
            folder.merged("record", final)
        else:
            say("record", f"{size / 1e9:.1f} GB: in {final} alone, without a copy as one file")
        few = record.sizes["sample"] <= FEW
        folder.table("attention", to_dataframe(record) if few else mean_table(record))
        if figures != "none":
            draw = plots.main_figures if figures == "main" else plots.figures
            folder.figures(draw(record))


def show_layers(record: "DataTree") -> None:
    """A row a layer of the LLM: where the answer's tokens look, and how spread out; heads averaged.

    Rows are those of response tokens; without a response, of the prompt's last token or the
    instruction.
    """
    from probe.plots.arguments import default_query
    from probe.plots.sample_mean import average

    llm = record["llm"].to_dataset()
    names = [str(name) for name in llm.query_type.values]
    query = default_query(llm)

    def over_layers(value: str, key: str) -> "ndarray":
        mean = average(record, "llm", value, band=False).mean
        return mean.sel(query_type=query, key_type=key).values

    columns = {f"→ {name}": over_layers("mass", name) for name in names}
    if "vision" in names:
        for name in ("share", "entropy", "head_entropy"):
            columns[name.replace("_", " ")] = over_layers(name, "vision")
    lines = [
        [str(int(layer) + 1), *(number(float(values[at])) for values in columns.values())]
        for at, layer in enumerate(llm.layer.values)
    ]
    show_table(
        f"Attention of {query} tokens, layer by layer",
        dict.fromkeys(("layer", *columns), "right"),
        lines,
        "→ B: attention on tokens of type B (mass). Of vision: share, and entropy in nats "
        "(-: one token has none). Layers count from 1.",
    )


def mean_table(record: "DataTree") -> "DataFrame":
    """A row a number: means over samples and heads with 95 % intervals, images redrawn."""
    import pandas as pd
    import xarray as xr

    from probe.plots.sample_mean import average
    from probe.records.schema import MEASURED

    frames = []
    for stack, node in record.children.items():
        for value in (name for name in MEASURED if name in node):
            mean = average(record, stack, value)
            parts = xr.Dataset({"mean": mean.mean, "low": mean.low, "high": mean.high})
            frames.append(parts.to_dataframe().reset_index().assign(stack=stack, value=value))
    first = ["stack", "value", "layer", "query_type", "key_type"]
    table = pd.concat(frames)[[*first, "mean", "low", "high"]]
    return table.query("mean == mean")  # without those that no query sees
