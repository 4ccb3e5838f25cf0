"""`probe attribute`: what an answer owes to the image and the prompt, and whether attention says
the same.
"""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from probe.cli.attention import Images, Question, Response, what_to_ask
from probe.cli.options import (
    Aspect,
    Attn,
    Debug,
    Device,
    Dtype,
    Longest,
    Model,
    Quantization,
    load_subject,
)
from probe.cli.output import all_or_nothing, console, not_writable, quieten_libraries

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from probe.subject.subject import Subject

FIRST = 8  # features on the terminal; all are in attribution.csv

Method = Annotated[
    Literal["ablation", "shapley", "integrated_gradients", "gradient_x_attention"],
    typer.Option(help="how attention is held against what the answer owes"),
]
Over = Annotated[
    Literal["patches", "grid", "words"], typer.Option(help="regions; grid: cells of 2 x 2 patches")
]
Baseline = Annotated[
    str,
    typer.Option(
        help="what stands in: mean, blur, rows, zero, hidden, or an image", show_default=True
    ),
]
Ceiling = Annotated[bool, typer.Option(help="also a second method, as the ceiling of agreement")]
Control = Annotated[
    bool, typer.Option(help="also the model with shuffled weights (a copy of it in memory)")
]
Seed = Annotated[int, typer.Option(help="of Shapley orders, random orders and shuffled weights")]
Out = Annotated[Path, typer.Option(help="folder of the results")]


def attribute(
    model: Model = "tiny-llava",
    image: Images = None,
    question: Question = None,
    response: Response = None,
    method: Method = "ablation",
    over: Over = "patches",
    baseline: Baseline = "mean",
    ceiling: Ceiling = True,
    control: Control = True,
    seed: Seed = 0,
    aspect: Aspect = None,
    dtype: Dtype = None,
    device: Device = None,
    attn: Attn = None,
    quantization: Quantization = None,
    max_new_tokens: Longest = 32,
    out: Out = Path("probe-out/attribute"),
    debug: Debug = False,
) -> None:
    """What the answer owes to each region and word, beside attention: datasets, figures, a CSV and
    a table.
    """
    with all_or_nothing(out) as folder:
        images, question = what_to_ask(image, question)
        from probe.measures.attribution import attribute as attribute_

        quieten_libraries(debug)
        loading = {"dtype": dtype, "device": device, "attn": attn, "quantization": quantization}
        subject = load_subject(model, aspect=aspect, **loading)
        options = {"over": over, "seed": seed, "max_new_tokens": max_new_tokens}
        options["progress"] = sys.stderr.isatty()
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", UserWarning)
            found = attribute_(
                subject, images, question, response, method, baseline=baseline, **options
            )
            datasets = {method: found}
            if over != "words":
                datasets |= _beside(
                    subject, images, question, found, baseline, options, ceiling, control
                )
        written = _write(datasets, folder)
    console.print(_table(found))
    console.print(_told(datasets), highlight=False, soft_wrap=True)
    for note in dict.fromkeys(
        str(each.message) for each in noted if "attribute:" in str(each.message)
    ):
        console.print(f"[bold]note[/] {escape(note)}", highlight=False, soft_wrap=True)
    console.print(
        f"[bold]written to[/] {out}/: {', '.join(written)}", highlight=False, soft_wrap=True
    )


def _beside(
    subject: "Subject",
    images: list,
    question: str,
    found: "xr.Dataset",
    baseline: str,
    options: dict,
    ceiling: bool,
    control: bool,
) -> dict[str, "xr.Dataset"]:
    """What agreement is held against: another method, deletion and insertion, the same of shuffled
    weights.
    """
    from probe.measures.attribution import attribute as attribute_
    from probe.measures.attribution import deletion_curves
    from probe.measures.attribution.weight_randomisation import randomised

    said, more = found["token_id"].values.tolist(), {}
    if ceiling:
        other = (
            "integrated_gradients"
            if found.attrs["method"] != "integrated_gradients"
            else "ablation"
        )
        way = "rows" if baseline == "hidden" else baseline
        more[other] = attribute_(subject, images, question, said, other, baseline=way, **options)
    attended = found["contribution"].mean("head").max("layer")
    scores = {found.attrs["method"]: found["attribution"], "attention (contribution)": attended}
    over = options["over"]
    more["curves"] = deletion_curves(
        subject, images, question, scores, said, over, baseline, seed=options["seed"]
    )
    if control:
        blank = randomised(subject, options["seed"])
        more["control"] = attribute_(
            blank, images, question, said, found.attrs["method"], baseline=baseline, **options
        )
    return more


def _figures(datasets: dict[str, "xr.Dataset"]) -> dict[str, "Figure"]:
    from probe import plots

    attributions = {
        name: one for name, one in datasets.items() if name not in ("curves", "control")
    }
    figures = {"attribution": plots.attribution(attributions)}
    if "curves" in datasets:
        control = datasets.get("control")
        figures["agreement"] = plots.agreement(
            attributions, curves=datasets["curves"], control=control
        )
    return figures


def _write(datasets: dict[str, "xr.Dataset"], folder: Path) -> list[str]:
    import matplotlib

    from probe.records import save_record

    matplotlib.use("Agg")  # files only: no window, whatever the display
    try:
        for name, dataset in datasets.items():
            save_record(dataset, folder / f"{name}.zarr.zip")
        first = next(iter(datasets.values()))
        first[["feature_kind", "attribution"]].to_dataframe().to_csv(folder / "attribution.csv")
        for name, figure in _figures(datasets).items():
            for ending in ("png", "svg"):
                figure.savefig(folder / f"{name}.{ending}", dpi=150, bbox_inches="tight")
    except OSError as error:
        raise not_writable(folder.parent, error) from error
    return sorted(file.name for file in folder.iterdir())


def _table(found: "xr.Dataset") -> Table:
    """The features that the answer owes most to."""
    table = Table(
        title="what the answer owes most to", box=box.SIMPLE, title_justify="left", min_width=40
    )
    table.add_column("feature")
    table.add_column("nat", justify="right")
    order = found["attribution"].values.argsort()[::-1][:FIRST]
    for index in order:
        table.add_row(
            escape(str(found["feature"].values[index])), f"{found['attribution'].values[index]:.3f}"
        )
    return table


def _told(datasets: dict[str, "xr.Dataset"]) -> str:
    from probe.plots.attention_agreement import verdict
    from probe.records.rank_agreement import rank_agreement

    found = next(iter(datasets.values()))
    about = found.attrs
    told = {
        "answer": f"{about['response']} (log-probability {float(found['logprob']):.2f})",
        "how": f"{about['method']}, baseline {about['baseline']}, sharing a prefix: {about['sharing']}",
        "model": f"{about['model']}, {about['dtype']}, {about['attention']}",
    }
    if "curves" in datasets:
        told["attention says the same"] = verdict(rank_agreement({about["method"]: found}))
    return "\n".join(f"[bold]{name}[/] {escape(text)}" for name, text in told.items())
