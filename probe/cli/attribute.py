"""`probe attribute`: what an answer owes to the image and the prompt, and whether attention says
the same.
"""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from probe.cli.options import (
    Images,
    Longest,
    ModelOptions,
    Out,
    Question,
    Response,
    Seed,
    VideoOptions,
    what_to_ask,
    with_options,
)
from probe.cli.output import say, show_table, stage
from probe.cli.result_folder import ResultFolder, results

if TYPE_CHECKING:
    import xarray as xr

    from probe.subject.subject import Subject

FLOWS = ("rollout", "gradient_rollout", "grad_cam", "contribution")  # methods of `probe.flow`
FIRST = 8  # features on the terminal; all are in attribution.csv

Method = Annotated[
    Literal[
        "ablation",
        "shapley",
        "integrated_gradients",
        "gradient_x_attention",
        "rollout",
        "gradient_rollout",
        "grad_cam",
        "contribution",
    ],
    typer.Option(
        help="how what the answer owes is measured; the last four follow it back to regions of the "
        "image, without a baseline"
    ),
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


@with_options
def attribute(
    loading: ModelOptions,
    frames: VideoOptions,
    image: Images = None,
    question: Question = None,
    response: Response = None,
    method: Method = "ablation",
    over: Over = "patches",
    baseline: Baseline = "mean",
    ceiling: Ceiling = True,
    control: Control = True,
    seed: Seed = 0,
    max_new_tokens: Longest = 32,
    out: Out = Path("probe-out/attribute"),
) -> None:
    """What the answer owes to each region and word, and whether attention agrees: datasets,
    figures, a CSV and a table.
    """
    with results("attribute", out) as folder:
        images, question = what_to_ask(image, question, frames)
        from probe.measures.attribution.attention_per_feature import why_no_contribution

        subject = loading.subject()
        if missing := why_no_contribution(subject.model):
            say("note", f"attribute: contribution is left out: {missing}")
        options: dict[str, Any] = {"over": over, "seed": seed, "max_new_tokens": max_new_tokens}
        options["progress"] = sys.stderr.isatty()
        with warnings.catch_warnings(record=True) as noted, stage("attributing"):
            warnings.simplefilter("always", UserWarning)
            attributed = _by(method, subject, images, question, response, baseline, **options)
            datasets = {method: attributed}
            if over != "words":
                asked = (subject, images, question)
                datasets |= _references(asked, attributed, baseline, options, ceiling, control)
        with stage("drawing"):
            _write(datasets, folder)
    _show_features(attributed)
    for label, text in _summary(datasets).items():
        say(label, text)
    for note in dict.fromkeys(str(warning.message) for warning in noted):
        if "attribute:" in note and "contribution is left out" not in note:  # said before
            say("note", note)
    folder.announce()


def _by(
    method: str,
    subject: "Subject",
    images: list,
    question: str,
    response: Any,
    baseline: str,
    **options: Any,
) -> "xr.Dataset":
    """The dataset of a method of `probe.attribute` or of `probe.flow`."""
    from probe.measures.attribution import attribute as attribute_
    from probe.measures.flow import flow

    asked = subject, images, question, response, method
    if method not in FLOWS:
        return attribute_(*asked, baseline=baseline, **options)
    return flow(*asked, options["over"], max_new_tokens=options["max_new_tokens"])


def _references(
    asked: "tuple[Subject, list, str]",
    attributed: "xr.Dataset",
    baseline: str,
    options: dict,
    ceiling: bool,
    control: bool,
) -> dict[str, "xr.Dataset"]:
    """What agreement is compared with: another method, deletion and insertion, the same method on
    shuffled weights.
    """
    from probe.measures.attribution import deletion_curves
    from probe.measures.attribution.weight_randomisation import randomised

    subject, images, question = asked
    method = attributed.attrs["method"]
    response_ids = attributed["token_id"].values.tolist()
    datasets = {}
    if ceiling:
        integrated = "integrated_gradients"
        other = "ablation" if method in (integrated, *FLOWS) else integrated
        no_line = other == integrated and baseline == "hidden"
        substitute = "rows" if no_line else baseline
        datasets[other] = _by(other, *asked, response_ids, substitute, **options)
    measure = "contribution" if "contribution" in attributed else "mass"
    attended = attributed[measure].mean("head").max("layer")
    scores = {method: attributed["attribution"], f"attention ({measure})": attended}
    if method in FLOWS and ceiling:
        scores["ablation"] = datasets["ablation"]["attribution"]
    seed = options["seed"]
    over = options["over"]
    datasets["curves"] = deletion_curves(
        subject, images, question, scores, response_ids, over, baseline, seed=seed
    )
    if control:
        shuffled = randomised(subject, seed)
        given = shuffled, images, question, response_ids
        datasets["control"] = _by(method, *given, baseline, **options)
    return datasets


def _write(datasets: dict[str, "xr.Dataset"], folder: ResultFolder) -> None:
    from probe import plots

    for name, dataset in datasets.items():
        folder.dataset(name, dataset)
    first = next(iter(datasets.values()))
    folder.table("attribution", first[["feature_kind", "attribution"]].to_dataframe(), index=True)
    maps = _maps(datasets)
    drawn = {"attribution": plots.attribution(maps)}
    if _is_compared(datasets):
        references = {"curves": datasets["curves"], "control": datasets.get("control")}
        drawn["agreement"] = plots.agreement(maps, **references)
    folder.figures(drawn)


def _maps(datasets: dict[str, "xr.Dataset"]) -> dict[str, "xr.Dataset"]:
    """The attributions of the model itself, without what they are compared with. Flows
    come last: they are made of attention, which has to agree with what is not.
    """
    maps = {name: one for name, one in datasets.items() if name not in ("curves", "control")}
    return dict(sorted(maps.items(), key=lambda item: item[0] in FLOWS))


def _is_compared(datasets: dict[str, "xr.Dataset"]) -> bool:
    """Whether attention is compared with an attribution that is not made of it."""
    return "curves" in datasets and bool(_maps(datasets).keys() - set(FLOWS))


def _show_features(attributed: "xr.Dataset") -> None:
    """The features that the answer owes most to."""
    values = attributed["attribution"].values
    units = attributed["attribution"].attrs["units"]
    digits = ".3f" if units == "nat" else ".3g"
    rows = [
        [attributed["feature"].values[index], format(values[index], digits)]
        for index in values.argsort()[::-1][:FIRST]
    ]
    show_table("what the answer owes most to", {"feature": "left", units: "right"}, rows)


def _summary(datasets: dict[str, "xr.Dataset"]) -> dict[str, str]:
    from probe.plots.attention_agreement import verdict
    from probe.records.rank_agreement import rank_agreement

    attributed = next(iter(datasets.values()))
    attrs = attributed.attrs
    method = attrs["method"]
    logprob = round(float(attributed["logprob"]), 2) + 0.0  # not -0.00
    texts = {
        "answer": f"{attrs['response']} (log-probability {logprob:.2f})",
        "how": f"{method}, baseline {attrs['baseline']}, sharing a prefix: {attrs['sharing']}",
        "model": f"{attrs['model']}, {attrs['dtype']}, {attrs['attention']}",
    }
    if _is_compared(datasets):
        texts["attention says the same"] = verdict(rank_agreement(_maps(datasets)))
    return texts
