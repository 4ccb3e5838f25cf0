"""`probe verify`: check the promises on a model."""

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from probe.cli.options import Attn, Debug, Device, Dtype, Model, Quantization, load_subject
from probe.cli.output import console, quieten_libraries


def verify(
    model: Model = "tiny-llava",
    dtype: Dtype = None,
    device: Device = None,
    attn: Attn = None,
    quantization: Quantization = None,
    debug: Debug = False,
) -> None:
    """Check the promises on a model, each with its number; exit code 1 if one is broken."""
    from probe.measures.verify import verify as run_checks

    quieten_libraries(debug)
    loading = {"dtype": dtype, "device": device, "attn": attn, "quantization": quantization}
    report = run_checks(load_subject(model, **loading))
    title = f"What probe promises, on {escape(model)}"
    table = Table("", "check", "measured", "promised", title=title, box=box.SIMPLE_HEAD)
    for check in report.checks:
        mark = "[green]kept[/]" if check.passed else "[bold red]BROKEN[/]"
        number = check.value if isinstance(check.value, str) else f"{check.value:.3g}"
        table.add_row(mark, escape(check.name), escape(number), escape(check.expected))
    console.print(table)
    console.print("\n[bold]For an appendix:[/]")
    typer.echo(report.appendix)
    if not all(check.passed for check in report.checks):
        raise typer.Exit(1)
