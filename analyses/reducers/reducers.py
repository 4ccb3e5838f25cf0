"""Token reducers on tiny-llava, beside their controls and tiny-llava-mini: accuracy, tokens, time;
what is kept, and what attention says.

    python analyses/reducers/reducers.py                # 72 drawn questions to 56 methods; resumes
    python analyses/reducers/reducers.py --questions 1002

The run is in probe-out/analyses/reducers. Figures, accuracy.csv and bench.csv go beside this file.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import probe
from probe.cli.benchmark_run import show_progress
from probe.cli.reduce import SEEDS, with_costs
from probe.cli.reduce_methods import OF_BENCH, budgets_of, methods_named, methods_of
from probe.evaluation.method_comparison import Comparison
from probe.evaluation.method_scores import method_scores
from probe.evaluation.reducer_benchmark import reducer_benchmark
from probe.evaluation.task import BenchmarkTask
from probe.measures.encoder_concentration import concentration
from probe.models.tiny.questions import sample_image
from probe.records.run_directory import RunDirectory
from probe.reducers import VisionZip, encode
from probe.subject.subject import Subject

HERE = Path(__file__).parent
RUN = Path("probe-out/analyses/reducers")
TOP = (1, 4, 9)  # of 36 patches


def answered(subject: Subject, questions: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Answers and costs of every method. Goes on with what is there."""
    others = [probe.load("tiny-llava-mini")]
    methods = methods_of(
        subject, methods_named(OF_BENCH), budgets_of(subject, []), others, SEEDS, in_tokens=True
    )
    comparison = Comparison(
        methods, BenchmarkTask.read("shapes", limit=questions), max_new_tokens=16
    )
    samples = comparison.task.with_images
    todo = RunDirectory.open(RUN, comparison.fingerprint()).todo(samples)
    with show_progress("reduce", len(todo)) as progress:
        run = comparison.run(RUN, progress)
    answers = comparison.results(run)
    return answers, comparison.costs(answers, repeats=5)


def kept(subject: Subject, seed: int = 0) -> Any:
    """The figure of what VisionZip leaves of one image in nine tokens."""
    image, question, _ = sample_image(seed)
    inputs = subject.encode(image, question)
    layer = subject.model.config.vision_feature_layer
    with torch.no_grad():
        tower: Any = subject.model.base_model.vision_tower
        reduction = encode(tower, inputs["pixel_values"], VisionZip(7, 2), layer)
    return probe.plots.kept(reduction, image, inputs.encoder_grid[0])


def concentrated(subject: Subject, images: int = 100) -> xr.Dataset:
    """The encoder's attention on this many images; prints the means that README.md tells."""
    found = concentration(subject, [sample_image(seed)[0] for seed in range(images)], top=TOP)
    means = found[["top_share", "gini", "entropy", "kept_from_last"]].mean("view")
    for layer in found["layer"].values:
        here = means.sel(layer=layer)
        held = ", ".join(f"{float(here['top_share'].sel(k=k)):.2f} in {k}" for k in TOP)
        even = float(here["entropy"]) / np.log(found.attrs["patch_count"])
        told = f"Gini {float(here['gini']):.2f}, entropy {even:.2f}, overlap {float(here['kept_from_last']):.2f}"
        print(f"encoder layer {layer + 1}: {held}; {told}")
    return found


def save(figures: dict[str, Any]) -> None:
    for name, figure in figures.items():
        figure.savefig(HERE / f"{name}.png", dpi=120, bbox_inches="tight", facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=72)
    parser.add_argument("--encoder", action="store_true", help="only the figures of the encoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = probe.load("tiny-llava")
    found = concentrated(subject)
    figures = {
        "kept": kept(subject),
        "concentration": probe.plots.concentration(found),
        "softmax-gradient": probe.plots.softmax_gradient(found),
    }
    save(figures)
    if options.encoder:
        return
    answers, costs = answered(subject, options.questions)
    save(
        {
            "reductions": probe.plots.reductions(answers, costs),
            "published": probe.plots.reductions(answers, published="visionzip_llava15_7b"),
            "bench": probe.plots.reducer_benchmark(answers, costs),
        }
    )
    table = with_costs(method_scores(answers), costs)
    table.to_csv(HERE / "accuracy.csv", index=False, float_format="%.5g")
    rows = reducer_benchmark(answers, costs)
    rows.to_csv(HERE / "bench.csv", index=False, float_format="%.4g")
    shown = ["method", "accuracy", "over_random", "over_smaller", "hard", "rest", "verdict"]
    print(rows[shown].round(1).to_string())


if __name__ == "__main__":
    main()
