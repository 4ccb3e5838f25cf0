"""Does attention mean anything? Attribution, logit lens and sinks beside it, on the tiny model and
on known truth.

    python analyses/meaning/meaning.py                      # 16 drawn questions: some minutes
    python analyses/meaning/meaning.py --questions 48
    python analyses/meaning/meaning.py --figures            # only the figures, of the first question
    python analyses/meaning/meaning.py --draw               # the figures again, without a model

Writes numbers.csv, figures and the tables of README.md beside this file. Shuffled weights: the same
model, which knows nothing, asked to say the same answer.
"""

import argparse
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import probe
from probe.measures.attribution.weight_randomisation import randomised
from probe.models.planted import planted
from probe.models.tiny.questions import sample_image
from probe.plots.conventions import survey, trend
from probe.records.rank_agreement import MEASURES, above_floor, rank_agreement

HERE = Path(__file__).parent
MEASURED = Path("probe-out/analyses/meaning")  # what the figures are drawn from
KINDS = ("colour", "at", "where", "exist")
METHODS = ("ablation", "shapley", "integrated_gradients", "gradient_x_attention")
QUIET: dict[str, Any] = {"progress": False}


def one(
    subject: Any, blank: Any, seed: int
) -> tuple[dict[str, Any], dict[str, xr.Dataset], xr.Dataset]:
    """What is found about one question: numbers, attributions, deletion curves."""
    image, question, right = sample_image(seed, KINDS[seed % len(KINDS)])
    found = {"ablation": probe.attribute(subject, image, question, **QUIET)}
    said = found["ablation"]["token_id"].values.tolist()
    found["integrated gradients"] = probe.attribute(
        subject, image, question, said, "integrated_gradients", attention=False, **QUIET
    ).merge(found["ablation"][list(MEASURES)])
    control = probe.attribute(blank, image, question, said, **QUIET)
    table, theirs = rank_agreement(found), rank_agreement({"ablation": control})
    contribution = found["ablation"]["contribution"].mean("head")
    scores = {
        "ablation": found["ablation"]["attribution"],
        "contribution": contribution.max("layer"),
        "mass": found["ablation"]["mass"].mean(["head", "layer"]),
    }
    curves = probe.deletion_curves(
        subject, image, question, scores, said, baseline="mean", seed=seed
    )
    lens = probe.logit_lens(subject, image, question, said)
    row: dict[str, Any] = {
        "seed": seed,
        "question": question,
        "right": str(found["ablation"].attrs["response"] == right),
    }
    for measure in MEASURES:
        row[f"{measure}, best layer"] = float(
            table["by_layer"].sel(reference="ablation", measure=measure).max()
        )
        row[f"{measure}, shuffled weights"] = float(theirs["by_layer"].sel(measure=measure).max())
    row["above the floor"] = any(above_floor(table, "ablation", measure) for measure in MEASURES)
    row["above the floor, shuffled weights"] = any(
        above_floor(theirs, "ablation", measure) for measure in MEASURES
    )
    row["floor"] = float(table["floor"].sel(reference="ablation"))
    row["ceiling"] = float(table["ceiling"].sel(reference="ablation", other="integrated gradients"))
    area = curves["logprob"].integrate("fraction")
    for score in curves["score"].values:
        row[f"deletion by {score}"] = float(area.sel(score=score, direction="deletion"))
    row["sinks"] = int(probe.find_sinks(subject, image, question, said)["sink"].any("layer").sum())
    row["layers until said"] = int((lens["next"].min("answer_token") > 0.5).values.argmax()) + 1
    return row | _by_layer(table), found, curves.assign_attrs(control=seed)


def _by_layer(table: xr.Dataset) -> dict[str, float]:
    values = table["by_layer"].sel(reference="ablation", measure="contribution").values
    return {f"contribution, layer {layer}": float(value) for layer, value in enumerate(values, 1)}


def known_truth() -> list[list[str]]:
    """Whether each method names the planted patches and layers first, on three models."""
    rows = []
    for layers, patches in (((3,), (8,)), ((2, 4), (14, 15, 20, 21)), ((0, 2, 5), (35, 7))):
        known = planted(layers, patches)
        subject, image = probe.load(known.model, processor=known.processor), known.image("red", 1)
        cells = []
        for method in METHODS:
            options: dict[str, Any] = {
                "method": method,
                "words": False,
                "attention": False,
                "batch": 36,
                **QUIET,
            }
            found = probe.attribute(subject, image, known.question, **options)
            where = set(np.argsort(-found["attribution"].values)[: len(patches)].tolist()) == set(
                patches
            )
            if "layer_attribution" not in found:
                deep = probe.attribute(subject, image, known.question, over="layers", **options)[
                    "attribution"
                ].values
            else:
                deep = found["layer_attribution"].sum("feature").values
            when = set(np.argsort(-deep)[: len(layers)].tolist()) == set(layers)
            cells.append(f"{'yes' if where else 'NO'}, {'yes' if when else 'NO'}")
        rows.append(
            [f"layers {', '.join(str(i + 1) for i in layers)}; {len(patches)} patches", *cells]
        )
    return rows


def conventions(subject: Any, questions: int) -> list[list[str]]:
    """How vision's part goes with depth, in every convention."""
    return [
        [
            *way,
            f"{float(trend(curve.mean(1))):+.2f}",
            f"{int((trend(curve) <= -0.5).sum())} of {curve.shape[1]}",
        ]
        for way, curve in survey(fine_record(subject, questions)).items()
    ]


def fine_record(subject: Any, questions: int) -> xr.DataTree:
    samples = [
        probe.Sample(str(seed), *sample_image(seed, KINDS[seed % len(KINDS)])[:2])
        for seed in range(questions)
    ]
    return probe.measure_samples(
        subject, samples, types="fine", contribution=True, stacks=["llm"], progress=False
    )


def example(subject: Any, blank: Any, questions: int) -> dict[str, Any]:
    """What the figures are drawn from: every instrument on the first question, and the record of
    all of them.
    """
    image, question, _ = sample_image(0, KINDS[0])
    _, found, curves = one(subject, blank, 0)
    said = found["ablation"]["token_id"].values.tolist()
    return {
        **found,
        "curves": curves,
        "control": probe.attribute(blank, image, question, said, **QUIET),
        "lens": probe.logit_lens(subject, image, question, said),
        "record": fine_record(subject, questions),
    }


def draw(measured: dict[str, Any]) -> None:
    attributions = {name: measured[name] for name in ("ablation", "integrated gradients")}
    references = {name: measured[name] for name in ("curves", "control")}
    figures = {
        "agreement": probe.plots.agreement(attributions, **references),
        "lens": probe.plots.lens(measured["lens"], [0, 2, 4, 7]),
        "conventions": probe.plots.conventions(measured["record"]),
    }
    for name, figure in figures.items():
        figure.savefig(HERE / f"{name}.png", dpi=100, facecolor="white")


def tables(numbers: pd.DataFrame, truth: list[list[str]], ways: list[list[str]]) -> str:
    """The tables of README.md."""
    mean = numbers.select_dtypes(["number", "bool"]).astype(float).mean()
    agree = [
        [name, f"{mean[f'{name}, best layer']:.2f}", f"{mean[f'{name}, shuffled weights']:.2f}"]
        for name in MEASURES
    ]
    layers = [name for name in numbers if str(name).startswith("contribution, layer")]
    by_layer = [["contribution", *(f"{mean[name]:.2f}" for name in layers)]]
    areas = [
        [name.removeprefix("deletion by "), f"{mean[name]:.1f}"]
        for name in numbers
        if "deletion by" in name
    ]
    own, blank = (100 * mean[f"above the floor{of}"] for of in ("", ", shuffled weights"))
    told = (
        f"{len(numbers)} questions, one image each. Floor {mean['floor']:.2f}; ceiling (ablation with integrated "
        f"gradients) {mean['ceiling']:.2f}. Above the floor in some layer: {own:.0f} % of the questions; with shuffled "
        f"weights {blank:.0f} %. Sinks found: {mean['sinks']:.1f} a question. Every word of the answer is above one "
        f"half from layer {mean['layers until said']:.1f} on."
    )
    return "\n\n".join(
        [
            told,
            _markdown(
                ["rank correlation with ablation, best layer", "tiny-llava", "shuffled weights"],
                agree,
            ),
            _markdown(["layer", *(name.split()[-1] for name in layers)], by_layer),
            "Area under deletion (nat; lower is better), pixels taken away by:",
            _markdown(["score", "area"], areas),
            "Planted models: are the planted patches, and the planted layers, named first?",
            _markdown(["planted", *METHODS], truth),
            "Vision over depth, tiny-llava (rank correlation with the layer; -0.5 and below fades):",
            _markdown(["value", "rows", "first token", "trend", "heads that fade"], ways),
        ]
    )


def _markdown(headings: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(map(str, row)) + " |"
        for row in [headings, ["---"] * len(headings), *rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--figures", action="store_true", help="measure and draw only the figures")
    parser.add_argument("--draw", action="store_true", help="draw the figures from what is there")
    options = parser.parse_args()
    if options.draw:
        draw({file.name.split(".")[0]: probe.open_record(file) for file in MEASURED.iterdir()})
        return
    warnings.filterwarnings("ignore", message="attribute: ")  # deltas are in the datasets
    subject = probe.load("tiny-llava")
    blank, rows = randomised(subject), []
    measured = example(subject, blank, options.questions)
    for name, dataset in measured.items():
        probe.save_record(dataset, MEASURED / f"{name}.zarr.zip")
    draw(measured)
    if options.figures:
        return
    for seed in range(options.questions):
        row, _, _ = one(subject, blank, seed)
        rows.append(row)
        print(seed, row["question"], f"{row['contribution, best layer']:.2f}", flush=True)
    numbers = pd.DataFrame(rows)
    numbers.to_csv(HERE / "numbers.csv", index=False, float_format="%.4g")
    written = tables(numbers, known_truth(), conventions(subject, options.questions))
    readme = HERE / "README.md"
    before, _, after = re.split(
        r"(?<=<!-- tables -->\n)(.*)(?=\n<!-- end -->)", readme.read_text(), flags=re.DOTALL
    )
    readme.write_text(before + written + after)
    print(written)


if __name__ == "__main__":
    main()
