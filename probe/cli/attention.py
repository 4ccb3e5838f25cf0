"""`probe attention`: measure which kinds of token attend to which, and draw it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from probe.cli.benchmark_run import dealt_with, show_progress, task_of
from probe.cli.options import (
    Aspect,
    Attn,
    Data,
    Debug,
    Device,
    Dtype,
    Limit,
    Longest,
    Model,
    Quantization,
    Split,
    load_subject,
)
from probe.cli.output import all_or_nothing, console, not_writable, quieten_libraries
from probe.cli.tables import layer_table, mean_table
from probe.errors import ProbeError

if TYPE_CHECKING:
    from xarray import DataTree

    from probe.evaluation.task import BenchmarkTask
    from probe.subject.subject import Subject

FEW = 20  # samples: with more, attention.csv has means

Images = Annotated[
    list[Path] | None,
    typer.Option(help="an image; give it again for several", show_default="a drawn sample image"),
]
Question = Annotated[str | None, typer.Option(help="what to ask", show_default="one that fits")]
Response = Annotated[
    str | None, typer.Option(help="the answer to measure", show_default="the model's own")
]
Types = Annotated[
    Literal["paper", "fine"], typer.Option(help="the paper's three token types, or six")
]
Maps = Annotated[
    bool, typer.Option("--maps", help="also keep token-by-patch maps of the answer's rows")
]
Benchmark = Annotated[
    str | None,
    typer.Option(help="measure its questions: shapes, gqa, ...; resumes", show_default="none"),
]
Out = Annotated[Path, typer.Option(help="folder of the results")]


def attention(
    model: Model = "tiny-llava",
    image: Images = None,
    question: Question = None,
    response: Response = None,
    types: Types = "paper",
    maps: Maps = False,
    benchmark: Benchmark = None,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    aspect: Aspect = None,
    dtype: Dtype = None,
    device: Device = None,
    attn: Attn = None,
    quantization: Quantization = None,
    max_new_tokens: Longest = 32,
    out: Out = Path("probe-out/attention"),
    debug: Debug = False,
) -> None:
    """Measure which kinds of token attend to which, and draw it: a record, figures, a CSV and a
    table.
    """
    _check_one_source(
        benchmark,
        {"image": image, "question": question, "response": response},
        {"data": data, "split": split, "limit": limit},
    )
    options = {"types": types, "maps": maps, "max_new_tokens": max_new_tokens}
    with all_or_nothing(out) as folder:
        task = task_of(benchmark, data, limit, split) if benchmark else None
        from probe.measures.attention.measure import measure

        quieten_libraries(debug)
        loading = {"dtype": dtype, "device": device, "attn": attn, "quantization": quantization}
        told = ""
        if task is None:
            pictures, question = what_to_ask(image, question)
            subject = load_subject(model, aspect=aspect, **loading)
            record = measure(subject, pictures, question, response, **options)
        else:
            subject = load_subject(model, aspect=aspect, **loading)
            record, told = _over(subject, task, out, folder, options)
        written = _write(record, folder)
    console.print(layer_table(record))
    console.print(told or _provenance(record), highlight=False, soft_wrap=True)
    console.print(
        f"[bold]written to[/] {out}/: {', '.join(written)}", highlight=False, soft_wrap=True
    )


def _check_one_source(benchmark: str | None, of_one: dict, of_many: dict) -> None:
    """Raises ProbeError where a benchmark and one question are asked for together."""
    wrong = of_one if benchmark else of_many
    given = [f"--{name}" for name, value in wrong.items() if value is not None and value != []]
    if given:
        expected = (
            "no question of its own beside --benchmark"
            if benchmark
            else f"--benchmark with {given[0]}"
        )
        raise ProbeError("attention", expected=expected, got=given[0] if benchmark else "none")


def _over(
    subject: "Subject", task: "BenchmarkTask", out: Path, folder: Path, options: dict
) -> tuple["DataTree", str]:
    """The record of a benchmark's samples, by way of a run directory; and what was left out."""
    from probe.evaluation.attention_run import attention_run, merged
    from probe.records.run_directory import RunDirectory

    todo = {sample.id for sample in task.samples} - RunDirectory(out).done()
    told = f"{len(task.samples)} questions, {len(task.samples) - len(todo)} done"
    console.print(
        f"[bold]{task.benchmark.name}[/]: {told}; Ctrl-C keeps what is finished", highlight=False
    )
    with show_progress("attention", len(todo)) as progress:
        run = attention_run(subject, task, out, progress=progress, **options)
    problems = dealt_with(run, task, folder)
    return merged(run, task), problems


def _provenance(record: "DataTree") -> str:
    """Question and answer, and how the model saw the image."""
    root = record.to_dataset()
    told = {
        "question": str(root["question"].values[0]).strip() or "(empty)",
        "answer": str(root["response"].values[0]).strip() or "(empty)",
        "image": f"{record.attrs['aspect']} (how it was fitted to the encoder)",
        "model": f"{record.attrs['model']}, {record.attrs['dtype']}, {record.attrs['attention']}",
    }
    return "\n".join(f"[bold]{name}[/] {escape(text)}" for name, text in told.items())


def what_to_ask(images: list[Path] | None, question: str | None) -> tuple[list, str]:
    """The user's images and question; what is missing comes from the drawn sample."""
    from probe.models.tiny.questions import sample_image

    picture, sample_question, _ = sample_image(seed=0)
    if question is None:
        question = "Describe the image." if images else sample_question
    return list(images or [picture]), question


def _write(record: "DataTree", folder: Path) -> list[str]:
    """Record, tidy CSV and figures; the names of the files."""
    import matplotlib

    from probe import plots
    from probe.records import save_record, to_dataframe

    matplotlib.use("Agg")  # files only: no window, whatever the display
    try:
        save_record(record, folder / "record.zarr.zip")
        table = to_dataframe(record) if record.sizes["sample"] <= FEW else mean_table(record)
        table.to_csv(folder / "attention.csv", index=False)
        for name, figure in plots.figures(record).items():
            for ending in ("png", "svg"):
                figure.savefig(folder / f"{name}.{ending}", dpi=150, bbox_inches="tight")
    except OSError as error:
        raise not_writable(folder.parent, error) from error
    return sorted(file.name for file in folder.iterdir())
