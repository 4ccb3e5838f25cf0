"""`probe cost`: what reading a prompt costs, by component, counted and measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from probe.cli.options import Debug, Device, Dtype
from probe.cli.output import all_or_nothing, console, not_writable, quieten_libraries
from probe.errors import ProbeError

if TYPE_CHECKING:
    import xarray as xr

LARGEST = 25  # times the operations of the model's own image: up to there prompts are measured
UNIT = {"vision_tokens": "vision tokens", "resolution": "pixels", "frames": "frames"}

Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="a name; again to compare", show_default="every shipped model"),
]
Several = "several with commas"
VisionTokens = Annotated[
    str | None, typer.Option(help=f"that the LLM reads; {Several}", show_default="powers of 4")
]
TextTokens = Annotated[
    int | None, typer.Option(min=0, help="of the question", show_default="a short question's")
]
Frames = Annotated[
    str | None, typer.Option(help=f"of a video; {Several}", show_default="1, 10, 100, 1000")
]
Resolution = Annotated[
    str | None,
    typer.Option(
        help=f"of the image, px a side; {Several}", show_default="1 to 4 views along a side"
    ),
]
Measure = Annotated[
    int | None,
    typer.Option(
        min=0, help="repeats of the measurement, 0: only count", show_default="5; 0 for hub ids"
    ),
]
Out = Annotated[Path, typer.Option(help="folder of the results")]


def cost(
    model: Models = None,
    vision_tokens: VisionTokens = None,
    text_tokens: TextTokens = None,
    frames: Frames = None,
    resolution: Resolution = None,
    measure: Measure = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Out = Path("probe-out/cost"),
    debug: Debug = False,
) -> None:
    """Count what reading a prompt costs (operations, cache) and measure it (time, memory): a CSV,
    figures, a table.
    """
    given = {"vision_tokens": vision_tokens, "resolution": resolution, "frames": frames}
    wanted = {axis: numbers(f"--{axis.replace('_', '-')}", text) for axis, text in given.items()}
    with all_or_nothing(out) as folder:
        from probe.measures.cost import join
        from probe.models.tiny import FOLDERS

        quieten_libraries(debug)
        options = {} if text_tokens is None else {"text_tokens": text_tokens}
        costs = []
        for name in model or sorted(FOLDERS):
            source = _source(name, measure, dtype, device)
            costs += cases_of(
                name,
                source,
                wanted,
                options,
                0 if source is name else 5 if measure is None else measure,
            )
        found = join(costs)
        _write(found, folder)
    console.print(cost_table(found))
    console.print(
        f"[bold]written to[/] {out}/: costs.csv, costs.json, figures (png, svg)", highlight=False
    )


def numbers(option: str, given: str | None) -> list[int] | None:
    """ "1,4,16" -> [1, 4, 16]. Raises ProbeError for anything else."""
    words = given.split(",") if given is not None else []
    if not all(word.strip().isdecimal() for word in words):
        raise ProbeError(option, expected="numbers with commas between them", got=repr(given))
    return [int(word) for word in words] if words else None


def _source(name: str, measure: int | None, dtype: str | None, device: str | None):
    """The model with its weights where it is to be measured, else only its name."""
    from probe.models.tiny import FOLDERS
    from probe.subject.loading import load

    return (
        load(name, dtype=dtype, device=device)
        if measure or (measure is None and name in FOLDERS)
        else name
    )


def cases_of(name: str, source, wanted: dict, options: dict, measure: int) -> "list[xr.Dataset]":
    """The model's own image first; then what is wanted, or a range of everything where nothing
    is.
    """
    from probe.measures.cost import cost as count

    base = count(source, **options, measure=measure, name=name)
    heavy = LARGEST * float(base["flops"].sum())
    cases = [base]
    for axis, values in (wanted if any(wanted.values()) else ranges(source)).items():
        for value in values or ():
            told = {"name": f"{name}, {UNIT[axis]} {value}", axis: value, **options}
            case = count(source, **told)
            measurable = measure and axis != "vision_tokens" and float(case["flops"].sum()) <= heavy
            cases.append(count(source, **told, measure=measure) if measurable else case)
    return cases


def ranges(source) -> dict[str, list[int]]:
    """Powers of 4 up to the patches of a view; images of 2 to 4 views along a side; videos."""
    from probe.measures.cost import own_view

    side, patches = own_view(source)
    tokens = [4**power for power in range(8) if 4**power < patches]
    return {
        "vision_tokens": tokens,
        "resolution": [side * along for along in (2, 3, 4)],
        "frames": [10, 100, 1000],
    }


def cost_table(costs: "xr.Dataset") -> Table:
    """A row a case, in the units that fit the largest."""
    from probe.measures.cost import table

    rows = table(costs)
    shown = Table(title="What reading a prompt costs", box=box.SIMPLE_HEAD)
    for heading in (
        "case",
        "vision tokens",
        "GFLOP",
        "of it LLM",
        "cache (MB)",
        "ms to first token",
        "peak (MB)",
    ):
        shown.add_column(heading, justify="left" if heading == "case" else "right")
    for _, row in rows.iterrows():
        measured = row.get("latency (ms)", float("nan"))
        time = f"{measured:.1f} ± {row['spread (ms)']:.1f}" if measured == measured else ""
        peak = f"{row['peak memory (MB)']:.0f}" if measured == measured else ""
        shown.add_row(
            escape(str(row["case"])),
            f"{row['vision_tokens']:g}",
            f"{1e3 * row['total (TFLOP)']:.4g}",
            f"{row['llm (TFLOP)'] / row['total (TFLOP)']:.0%}",
            f"{row['cache of vision (MB)'] + row['cache of text (MB)']:.4g}",
            time,
            peak,
        )
    shown.caption = (
        "operations of attention included; costs.csv has every component, with and without them"
    )
    return shown


def _write(costs: "xr.Dataset", folder: Path) -> None:
    import matplotlib

    from probe import plots
    from probe.measures.cost import table, write

    matplotlib.use("Agg")  # files only: no window, whatever the display
    try:
        write(costs, folder / "costs.json")
        table(costs).to_csv(folder / "costs.csv", index=False, float_format="%.8g")
        for name, figure in plots.cost_figures(costs).items():
            for ending in ("png", "svg"):
                figure.savefig(folder / f"{name}.{ending}", dpi=150, bbox_inches="tight")
    except OSError as error:
        raise not_writable(folder.parent, error) from error
