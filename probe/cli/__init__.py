"""The command `probe`: the main jobs without writing Python.

    probe attention      # which tokens attend to which; --model, --image, --question, --benchmark
    probe drop           # take vision tokens away, layer by layer: what happens to the answers?
    probe reduce         # fewer vision tokens: accuracy against tokens and time, by method
    probe average DIRS   # over benchmarks, as the paper prints it and as it was meant
    probe attribute      # what the answer owes to the image, and whether attention says so
    probe heads          # take each head away: what does it add to the right answers?
    probe patch          # activations of one run in another: what brings the right answer back?
    probe reliability RUN # does attention predict being right? beside the model's own confidence
    probe view RECORD    # a page to look around in: words, layers, heads, boxes on the image
    probe cost           # operations, cache, time and memory of reading a prompt
    probe describe MODEL # which stacks, measures, interventions and reducers it offers, or why not
    probe verify         # are the promises kept on this model?
    probe reproduce      # a paper's figures and tables on your model: llava-mini, visionzip
    probe report PATHS   # one page: figures, definitions, how it was made, a methods paragraph
    probe train          # make a shipped model again
    probe status DIR     # how far a run is: done, claimed, failed, time left, a line a worker
    probe convert DIR    # LLaVA-Mini's authors' checkpoint, for transformers

Verbs are thin: each reads its options, calls the Python of the same name and prints; the file of a
verb has its name. Heavy imports stand inside them, so that help and mistakes answer at once. A
mistake ends in one line and exit code 2.

| file | what |
|---|---|
| `options.py` | groups of options that several verbs have |
| `output.py` | the terminal |
| `result_folder.py` | the folder of results: whole or not at all |
| `benchmark_run.py` | what verbs over a benchmark share |
| `engine.py` | the processes that do the work: `launcher.py`, `on_ray.py`, or by environment |
"""

import importlib
import signal
import sys
import warnings
from typing import Annotated, Any, TextIO

import typer
from typer.exceptions import TyperException

from probe.cli.worker import command_line, end_with_launcher, is_launched, tell_launcher
from probe.errors import ProbeError, RunWarning, printable

VERBS = (
    "attention",
    "drop",
    "reduce",
    "attribute",
    "heads",
    "patch",
    "reliability",
    "view",
    "average",
    "cost",
    "verify",
    "train",
    "convert",
    "status",
    "report",
    "reproduce",
    "describe",
)
DONE = 0
BROKEN = 1
MISTAKE = 2
INTERRUPTED = 130
TERMINATED = 143


class Terminated(BaseException):
    """SIGTERM: ends the work as Ctrl-C does, so that nothing unfinished is left."""


def _app() -> typer.Typer:
    app = typer.Typer(
        name="probe",
        help="See, layer by layer, how a LLaVA-family model attends to instruction, vision and "
        "response tokens.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_start)
    for verb in VERBS:
        function = getattr(importlib.import_module(f"probe.cli.{verb}"), verb)
        app.command(help=" ".join((function.__doc__ or "").split()))(function)
    return app


def run_verb(arguments: list[str]) -> int:
    """Runs one command in this process, as its workers will; returns the exit code it ends with."""
    before = command_line.set(tuple(arguments))
    try:
        return _app()(arguments, prog_name="probe", standalone_mode=False) or DONE
    finally:
        command_line.reset(before)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a promise broken, 2 a mistake, 130 Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _survive_narrow_terminals()
    before = _on_sigterm(_terminate)
    show_warning = warnings.showwarning
    warnings.showwarning = _show_warning
    if is_launched():
        end_with_launcher()
    try:
        code = run_verb(arguments or ["--help"])
        sys.stdout.flush()
    except ProbeError as error:
        if "--debug" in arguments:
            raise
        code = DONE if tell_launcher(str(error)) else _complain(str(error), MISTAKE)
    except TyperException as error:
        code = _complain(_in_words(error), MISTAKE)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        code = DONE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Terminated:
        code = TERMINATED
        if not is_launched():  # its launcher says what is going on
            _complain("terminated; nothing was left half-written", code)
    except OSError as error:
        if "--debug" in arguments:
            raise
        code = _complain(f"expected files and a terminal that can be used, got {error}", MISTAKE)
    finally:
        _on_sigterm(before)
        warnings.showwarning = show_warning
    if code == INTERRUPTED:  # typer's own code for Ctrl-C
        _complain("interrupted; nothing was left half-written", INTERRUPTED)
    _forget_output(code)
    sys.exit(code)


def _in_words(error: TyperException) -> str:
    """What is wrong with the words of a command line, and where the right ones are listed."""
    told = error.format_message().replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)  # errors of usage have it
    return told if context is None else f"{told}; see `{context.command_path} --help`"


def _complain(line: str, code: int) -> int:
    print("probe:", " ".join(printable(line).split()), file=sys.stderr)
    return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A run's own warnings in one line; others as Python shows them."""
    if issubclass(category, RunWarning):
        _complain(str(message), DONE)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)


def _survive_narrow_terminals() -> None:
    """In a locale without UTF-8 (LC_ALL=C) a character that can't be written becomes a "?"."""
    for stream in (sys.stdout, sys.stderr):
        if "utf" not in (getattr(stream, "encoding", "") or "utf").lower():
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def _forget_output(code: int) -> None:
    """After a failed write to stdout, Python would fail again while it ends."""
    if code in (DONE, MISTAKE):
        try:
            sys.stdout.flush()
        except OSError:
            sys.stdout = None  # type: ignore[assignment]


def _terminate(signal_number: int, frame: Any) -> None:
    raise Terminated


def _on_sigterm(handler: Any) -> Any:
    """Sets the handler of SIGTERM where this is the main thread; the one before."""
    try:
        return signal.signal(signal.SIGTERM, handler)
    except ValueError:  # not the main thread
        return None


def _tell_version(wanted: bool) -> bool:
    if wanted:
        from probe import __version__

        typer.echo(f"probe {__version__}")
        raise typer.Exit
    return wanted


def _start(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass
