"""`probe verify`: check the promises on a model."""

import typer
from rich.text import Text

from probe.cli.options import ModelOptions, with_options
from probe.cli.output import console, say, show_table, stage


@with_options
def verify(loading: ModelOptions) -> None:
    """Check the promises on a model, each with its number; exit code 1 if one is broken."""
    from probe.measures.verify import verify as run_checks

    subject = loading.subject()
    with stage("checking"):
        report = run_checks(subject)
    rows = [
        [
            Text("kept", "green") if check.passed else Text("BROKEN", "bold red"),
            check.name,
            check.value if isinstance(check.value, str) else f"{check.value:.3g}",
            check.expected,
        ]
        for check in report.checks
    ]
    headings = {"": "left", "check": "left", "measured": "left", "promised": "left"}
    show_table(f"What probe promises, on {loading.model}", headings, rows)
    console.print()
    say("For an appendix:")
    typer.echo(report.appendix)
    if not all(check.passed for check in report.checks):
        raise typer.Exit(1)
