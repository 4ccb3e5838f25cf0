"""The command `probe`: the main jobs without writing Python.

    probe attention                       # the shipped tiny model looks at a sample image
    probe attention --model llava-hf/llava-1.5-7b-hf --image cat.jpg --question "What is the cat doing?"
    probe drop                            # take vision tokens away, layer by layer: what happens to the answers?
    probe reduce                          # fewer vision tokens: accuracy against tokens and time, by method
    probe average out/gqa out/mme ...     # over benchmarks, as the paper prints it and as it was meant
    probe attribute                       # what the answer owes to the image, and whether attention says so
    probe cost                            # operations, cache, time and memory of reading a prompt
    probe verify                          # are the promises kept on this model?
    probe train tiny-llava                # make the shipped model again
    probe convert llava-mini --out native # LLaVA-Mini's authors' checkpoint, for transformers

Verbs are thin: each reads its options, calls the Python of the same name and prints. Heavy imports
stand inside them, so that help and mistakes answer at once. A mistake ends in one line and exit
code 2.

| file | what |
|---|---|
| `options.py` | options that several verbs have |
| `output.py` | the terminal, and the folder of results: whole or not at all |
| `running.py` | what verbs over a benchmark share |
| `tables.py` | attention in rows |
| `looking.py`, `dropping.py`, `checking.py`, `making.py` | the verbs attention, drop, verify, train |
| `attributing.py` | the verb attribute |
| `reducing.py`, `converting.py`, `costing.py`, `averaging.py` | the verbs reduce, convert, cost, average |
"""

import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from probe.cli.attention import attention
from probe.cli.attribute import attribute
from probe.cli.average import average
from probe.cli.convert import convert
from probe.cli.cost import cost
from probe.cli.drop import drop
from probe.cli.reduce import reduce
from probe.cli.train import train
from probe.cli.verify import verify
from probe.errors import ProbeError

app = typer.Typer(
    name="probe",
    help="See, layer by layer, how a LLaVA-family model attends to instruction, vision and response tokens.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (attention, drop, reduce, attribute, average, cost, verify, train, convert):
    app.command()(verb)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a promise broken, 2 a mistake, 130 Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(arguments or ["--help"], prog_name="probe", standalone_mode=False) or 0
    except ProbeError as error:
        if "--debug" in arguments:
            raise
        code = _complain(str(error), 2)
    except TyperException as error:
        code = _complain(error.format_message(), 2)
    except KeyboardInterrupt:
        code = 130
    if code == 130:  # typer's own code for Ctrl-C
        _complain("interrupted; nothing was left half-written", 130)
    sys.exit(code)


def _complain(line: str, code: int) -> int:
    print("probe:", " ".join(line.split()), file=sys.stderr)
    return code


def _tell_version(wanted: bool) -> bool:
    if wanted:
        from probe import __version__

        typer.echo(f"probe {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _start(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass
