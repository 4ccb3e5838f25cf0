"""The command `probe`: the main jobs without writing Python.

    probe attention                       # the shipped tiny model looks at a sample picture
    probe attention --model llava-hf/llava-1.5-7b-hf --image cat.jpg --question "What is the cat doing?"
    probe verify                          # are the promises kept on this model?
    probe train tiny-llava                # make the shipped model again

The functions are thin: each reads its options, calls the Python of the same name and prints. Heavy imports
stand inside them, so that help and mistakes answer at once. A mistake ends in one line and exit code 2.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.exceptions import TyperException

from probe.errors import ProbeError

if TYPE_CHECKING:
    from xarray import DataTree

app = typer.Typer(
    name="probe",
    help="See, layer by layer, how a LLaVA-family model attends to instruction, vision and response tokens.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()

Model = Annotated[str, typer.Option(help="tiny-llava, a hub id or a local folder")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ...", show_default="the fastest there is")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16", show_default="as the checkpoint was saved")
]
Attn = Annotated[
    str | None, typer.Option(help="sdpa, eager or flash_attention_2", show_default="the model's own")
]
Aspect = Annotated[
    Literal["pad", "crop"] | None,
    typer.Option(
        help="fit the picture by padding (as the paper) or cropping", show_default="the processor's own"
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="show the traceback of a mistake, and the libraries' logs")
]


@app.callback(invoke_without_command=True)
def start(context: typer.Context, version: Annotated[bool, typer.Option("--version")] = False) -> None:
    if version:
        from probe import __version__

        typer.echo(f"probe {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def attention(
    model: Model = "tiny-llava",
    image: Annotated[
        list[Path] | None,
        typer.Option(help="a picture; give it again for several", show_default="a drawn sample picture"),
    ] = None,
    question: Annotated[str | None, typer.Option(help="what to ask", show_default="one that fits")] = None,
    response: Annotated[
        str | None, typer.Option(help="the answer to measure", show_default="the model's own")
    ] = None,
    types: Annotated[
        Literal["paper", "fine"], typer.Option(help="the paper's three token types, or six")
    ] = "paper",
    maps: Annotated[
        bool, typer.Option("--maps", help="also keep token-by-patch maps of the answer's rows")
    ] = False,
    aspect: Aspect = None,
    dtype: Dtype = None,
    device: Device = None,
    attn: Attn = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer")] = 32,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("probe-out/attention"),
    debug: Debug = False,
) -> None:
    """Measure which kinds of token attend to which, and draw it: a record, figures, a CSV and a table."""
    with _all_or_nothing(out) as folder:
        from probe.measurement import measure
        from probe.subject import load

        _quieten_libraries(debug)
        pictures, question = _what_to_ask(image, question)
        subject = load(model, device=device, dtype=dtype, attn=attn, aspect=aspect)
        record = measure(
            subject,
            pictures,
            question,
            response=response,
            types=types,
            maps=maps,
            max_new_tokens=max_new_tokens,
        )
        written = _write(record, folder)
    console.print(layer_table(record))
    console.print(_provenance(record), highlight=False, soft_wrap=True)
    console.print(f"[bold]written to[/] {out}/: {', '.join(written)}", highlight=False, soft_wrap=True)


@app.command()
def verify(
    model: Model = "tiny-llava",
    dtype: Dtype = None,
    device: Device = None,
    attn: Attn = None,
    debug: Debug = False,
) -> None:
    """Check the promises on a model, each with its number; exit code 1 if one is broken."""
    from probe.subject import load
    from probe.verification import verify as run_checks

    _quieten_libraries(debug)
    report = run_checks(load(model, device=device, dtype=dtype, attn=attn))
    table = Table("", "check", "measured", "promised", title=f"What probe promises, on {model}")
    for check in report.checks:
        mark = "[green]kept[/]" if check.passed else "[bold red]BROKEN[/]"
        table.add_row(mark, check.name, _number(check.value), check.expected)
    console.print(table)
    console.print("\n[bold]For an appendix:[/]")
    typer.echo(report.appendix)
    if not all(check.passed for check in report.checks):
        raise typer.Exit(1)


@app.command()
def train(
    what: Annotated[Literal["tiny-llava"], typer.Argument(help="the model to make")] = "tiny-llava",
    out: Annotated[Path, typer.Option(help="folder of the new model")] = Path("probe-out/train"),
    steps: Annotated[int | None, typer.Option(min=1, help="stop after so many", show_default="the recipe's")] = None,
    seed: Annotated[int, typer.Option(help="of weights and pictures")] = 0,
    debug: Debug = False,
) -> None:
    """Make the shipped model again, from a seed, on drawn pictures; a run that was stopped goes on from there."""
    with _all_or_nothing(out):
        pass  # hours of work must not end at a folder that cannot be written
    from probe.models.tiny.recipe import Recipe
    from probe.models.tiny.training import train as train_tiny

    _quieten_libraries(debug)
    train_tiny(out, recipe=Recipe(seed=seed), steps=steps)
    console.print(f"[bold]written to[/] {out}/", highlight=False)


def layer_table(record: "DataTree") -> Table:
    """A row a layer of the LLM: where the answer's tokens look, and how spread out; heads averaged.

    Rows are those of response tokens; without a response, of the prompt's last token or the instruction.
    """
    llm = record["llm"].to_dataset()
    names = [str(name) for name in llm.query_type.values]
    asked = [name for name in ("response", "last", "instruction") if name in names] or names
    query = next((name for name in asked if llm.query_count.sel(query_type=name).sum() > 0), asked[0])
    rows = llm.sel(query_type=query).mean([dim for dim in ("sample", "head") if dim in llm.dims])
    vision = rows.sel(key_type="vision") if "vision" in names else None
    table = Table(title=f"Attention of {query} tokens, layer by layer (mean over heads)")
    for heading in ("layer", *(f"→ {name}" for name in names)):
        table.add_column(heading, justify="right")
    if vision is not None:
        for heading in ("share of vision", "entropy over vision", "in each head"):
            table.add_column(heading, justify="right")
    for at, layer in enumerate(llm.layer.values):
        cells = [f"{value:.3f}" for value in rows.mass.isel(layer=at).values]
        if vision is not None:
            cells += [f"{float(vision[name][at]):.3f}" for name in ("share", "entropy", "head_entropy")]
        table.add_row(str(int(layer) + 1), *("-" if cell == "nan" else cell for cell in cells))
    table.caption = "→ B: share of a query's attention on tokens of type B; entropy in nats"
    return table


def _write(record: "DataTree", folder: Path) -> list[str]:
    """Record, tidy CSV and figures; the names of the files."""
    from probe import plots
    from probe.record import save, to_dataframe

    try:
        save(record, folder / "record.zarr.zip")
        to_dataframe(record).to_csv(folder / "attention.csv", index=False)
        for name, figure in plots.figures(record).items():
            for ending in ("png", "svg"):
                figure.savefig(folder / f"{name}.{ending}", dpi=150, bbox_inches="tight")
    except OSError as error:
        raise _not_writable(folder.parent, error) from error
    return sorted(file.name for file in folder.iterdir())


def _provenance(record: "DataTree") -> str:
    """Question and answer, and how the model saw the picture."""
    root = record.to_dataset()
    told = {
        "question": str(root["question"].values[0]).strip() or "(empty)",
        "answer": str(root["response"].values[0]).strip() or "(empty)",
        "picture": f"{record.attrs['aspect']} (how it was fitted to the encoder)",
        "model": f"{record.attrs['model']}, {record.attrs['dtype']}, {record.attrs['attention']}",
    }
    return "\n".join(f"[bold]{name}[/] {escape(text)}" for name, text in told.items())


def _what_to_ask(images: list[Path] | None, question: str | None) -> tuple[list, str]:
    """The user's pictures and question; what is missing comes from the drawn sample."""
    from probe.models.tiny.questions import sample_picture

    picture, sample_question, _ = sample_picture(seed=0)
    if question is None:
        question = "describe the picture ." if images else sample_question
    return list(images or [picture]), question


def _quieten_libraries(debug: bool) -> None:
    """Leave the terminal to the results: warnings of transformers are for its own users."""
    if not debug:
        from transformers.utils import logging

        logging.set_verbosity_error()


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


@contextmanager
def _all_or_nothing(out: Path) -> Iterator[Path]:
    """A folder inside `out` to write into; its files move up to `out` together, once everything is written.

    Made before any work, so that a folder that can't be written is told at once (ProbeError).
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-")
    except OSError as error:
        raise _not_writable(out, error) from error
    with unfinished as folder:
        yield Path(folder)
        for file in Path(folder).iterdir():
            os.replace(file, out / file.name)


def _not_writable(out: Path, error: OSError) -> ProbeError:
    got = f"'{out}' ({error.strerror or error})"
    return ProbeError("--out", expected="a folder that can be written", got=got, fix="choose another folder")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a promise broken, 2 a mistake, 130 Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(arguments, prog_name="probe", standalone_mode=False) or 0
    except (ProbeError, TyperException) as error:
        if "--debug" in arguments and isinstance(error, ProbeError):
            raise
        code = _complain(error.format_message() if isinstance(error, TyperException) else str(error), 2)
    except KeyboardInterrupt:
        code = 130
    if code == 130:
        _complain("interrupted; nothing was left half-written", 130)
    sys.exit(code)


def _complain(line: str, code: int) -> int:
    print("probe:", " ".join(line.split()), file=sys.stderr)
    return code
