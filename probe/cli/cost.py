"""`probe cost`: what reading a prompt costs, by component, counted and measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe.cli.options import Debug, Device, Dtype, ModelOptions, Out, several_numbers
from probe.cli.output import quieten_libraries, show_table, stage
from probe.cli.result_folder import results

if TYPE_CHECKING:
    import xarray as xr

LARGEST = 25  # times the operations of the model's own image: up to there prompts are measured
SEVERAL = "several with commas"
STEPS = (("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18))

Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="a name; again to compare", show_default="every shipped model"),
]
VisionTokens = Annotated[
    str | None, typer.Option(help=f"that the LLM reads; {SEVERAL}", show_default="powers of 4")
]
TextTokens = Annotated[
    int | None, typer.Option(min=0, help="of the question", show_default="a short question's")
]
Frames = Annotated[
    str | None, typer.Option(help=f"of a video; {SEVERAL}", show_default="1, 10, 100, 1000")
]
Resolution = Annotated[
    str | None,
    typer.Option(
        help=f"of the image, pixels a side; {SEVERAL}", show_default="1 to 4 views along a side"
    ),
]
Measure = Annotated[
    int | None,
    typer.Option(
        min=0, help="repeats of the measurement, 0: only count", show_default="5; 0 for hub ids"
    ),
]


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
    wanted = {
        axis: several_numbers(f"--{axis.replace('_', '-')}", text) for axis, text in given.items()
    }
    with results("cost", out) as folder:
        from probe import plots
        from probe.measures.cost import join, table, write
        from probe.models.tiny import FOLDERS

        quieten_libraries(debug)
        options = {} if text_tokens is None else {"text_tokens": text_tokens}
        costs = []
        for name in dict.fromkeys(model or sorted(FOLDERS)):
            repeats = measure if measure is not None else 5 * (name in FOLDERS)
            loading = ModelOptions(name, dtype=dtype, device=device, debug=debug)
            is_named = not repeats and says_all(name)
            source = name if is_named else loading.subject()
            with stage(f"counting {name}"):
                costs += cases_of(name, source, wanted, options, repeats)
        joined = join(costs)
        write(joined, folder.file("costs.json"))
        folder.table("costs", table(joined))
        with stage("drawing"):
            folder.figures(plots.cost_figures(joined))
    show_costs(joined)
    folder.announce()


def says_all(model: Any) -> bool:
    """Whether a model's config alone says what becomes of an image. `model`: a name or a config."""
    from probe.measures.cost import cost as count
    from probe.measures.cost.prompt_shape import OtherPixelsProbeError

    try:
        count(model)
    except OtherPixelsProbeError:
        return False
    return True


def cases_of(
    name: str, source: Any, wanted: dict, options: dict, measure: int
) -> "list[xr.Dataset]":
    """The model's own image first; then what is wanted, or a range of everything where nothing
    is. `source`: a subject, or a name to count from its config alone.
    """
    from probe.measures.cost import cost as count

    base = count(source, **options, measure=measure, name=name)
    largest = LARGEST * float(base["flops"].sum())
    cases = [base]
    for axis, values in (wanted if any(wanted.values()) else ranges(source, base)).items():
        for value in values or ():
            shape = {"name": f"{name}, {axis.replace('_', ' ')} {value}", axis: value, **options}
            case = count(source, **shape)
            measurable = measure and axis != "vision_tokens"
            if measurable and float(case["flops"].sum()) <= largest:
                case = count(source, **shape, measure=measure)
            cases.append(case)
    return cases


def ranges(source: Any, base: "xr.Dataset") -> dict[str, list[int]]:
    """Powers of 4 up to the patches of a view; images of 2 to 4 views along a side; videos. Of a
    model whose config does not say what becomes of an image: powers of 4 up to the vision tokens of
    its first case (none where words read the image by cross-attention), and images up to 3 times as
    large.
    """
    from probe.measures.cost import own_view

    if not says_all(source if isinstance(source, str) else source.model.config):
        side = base["height"].item()
        made = int(base["vision_tokens"].item())
        return {"vision_tokens": powers(made), "resolution": [side * along for along in (2, 3)]}
    side, most = own_view(source)
    return {
        "vision_tokens": powers(most),
        "resolution": [side * along for along in (2, 3, 4)],
        "frames": [10, 100, 1000],
    }


def powers(most: int) -> list[int]:
    """Powers of 4 below a number.

    >>> powers(20)
    [1, 4, 16]
    """
    return [4**power for power in range(8) if 4**power < most]


def show_costs(costs: "xr.Dataset") -> None:
    """A row a case, in units that fit."""
    from probe.measures.cost import table

    headings = {"case": "left"} | dict.fromkeys(
        ("vision tokens", "operations", "of it LLM", "cache", "ms to first token", "peak memory"),
        "right",
    )
    rows = []
    for row in table(costs).to_dict("records"):
        cache = row["cache of vision (MB)"] + row["cache of text (MB)"]
        rows.append(
            [
                row["case"],
                f"{row['vision_tokens']:g}",
                with_unit(1e12 * row["total (TFLOP)"], "FLOP"),
                f"{row['llm (TFLOP)'] / row['total (TFLOP)']:.0%}",
                with_unit(1e6 * cache, "B"),
                *time_and_memory(row),
            ]
        )
    caption = (
        "Operations of attention included; costs.csv has every component, with and without them. "
        "ms: mean ± standard deviation. -: only counted (fewer tokens need a reducer, and "
        "--measure 0, hub ids and very large prompts are not timed)."
    )
    show_table("What reading a prompt costs", headings, rows, caption)


def time_and_memory(row: Mapping[str, Any]) -> tuple[str, str]:
    """The cells "time to the first token" (ms) and "peak memory" of a row, "-" if not measured."""
    latency = row.get("latency (ms)", float("nan"))
    if latency != latency:
        return "-", "-"
    peak = with_unit(1e6 * row["peak memory (MB)"], "B")
    return f"{latency:.1f} ± {row['spread (ms)']:.1f}", peak


def with_unit(value: float, unit: str) -> str:
    """A number with the decimal prefix that fits it.

    >>> with_unit(1.82e17, "FLOP"), with_unit(3.02e11, "B"), with_unit(0, "B")
    ('182 PFLOP', '302 GB', '0 B')
    """
    reached = [step for step in STEPS if abs(value) >= 0.9995 * 10 ** step[1]]
    prefix, power = reached[-1] if reached else STEPS[0]
    return f"{value / 10**power:.3g} {prefix}{unit}"
