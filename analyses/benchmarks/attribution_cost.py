"""What an ablation on a shared prefix costs beside a plain loop over the same ablations.

    python analyses/benchmarks/attribution_cost.py         # tiny widths, 16 layers: a minute or two
    python analyses/benchmarks/attribution_cost.py --wide      # 7B widths, 4 layers, bfloat16: long

One image of 576 vision tokens, 144 cells of 2 x 2, 40 tokens of text behind it and an answer of 4.
Random weights. A plain loop takes each cell away and runs the whole model again: the median of a
few is taken 145 times. Times are process times of one thread, so that their ratio holds on a busy
machine. `rows` counts token rows through the decoder.
"""

import argparse
import statistics
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from sweep_cost import QUESTION, build, seconds

from probe.interventions import knockout
from probe.measures.attribution import attribute
from probe.measures.attribution.baselines import Perturbation
from probe.measures.attribution.features import Features
from probe.measures.attribution.perturbed_model import PerturbedModel
from probe.measures.attribution.shared_prefix import SharedPrefix
from probe.subject.subject import Subject
from probe.subject.target_response import TargetResponse

ANSWER = [40, 41, 42, 43]  # any four words
BASELINES = ("hidden", "rows", "mean")


def alone(subject: Subject, answer: TargetResponse, features: Features, cell: int) -> None:
    """One turn of a plain loop: text cannot see the cell."""
    types = answer.inputs.as_types({"cell": (features.tokens == cell).numpy()}).types
    with knockout(
        subject.model,
        "text",
        "cell",
        range(subject.model.config.text_config.num_hidden_layers),
        types,
    ):
        subject.model(**answer.inputs, use_cache=False)


def compare(subject: Subject, widths: str, sampled: int) -> None:
    """Prints the time of the loop and of `attribute` for each baseline, and their ratio."""
    image, question, layers = (
        Image.new("RGB", (336, 336), "red"),
        QUESTION,
        subject.model.config.text_config,
    )
    options: dict[str, Any] = {
        "over": "grid",
        "words": False,
        "attention": False,
        "progress": False,
    }
    answer = TargetResponse.of(subject, image, question, ANSWER)
    features = Features.of(subject, answer.inputs, "grid", words=False)
    with torch.no_grad():
        cells = (0, *np.linspace(0, len(features) - 1, sampled, dtype=int).tolist())
        loop = [seconds(partial(alone, subject, answer, features, cell)) for cell in cells]
    plain = statistics.median(loop[1:]) * (len(features) + 1)  # the first one warms up
    length = answer.inputs["input_ids"].shape[1]
    shape = f"{widths} widths, {layers.num_hidden_layers} layers, {len(features)} cells, {length} tokens"
    print(f"{shape}: plain loop {plain:.1f} s")
    for baseline in BASELINES[: 3 if widths == "tiny" else 1]:
        took = seconds(
            partial(attribute, subject, image, question, ANSWER, baseline=baseline, **options)
        )
        shared = SharedPrefix.of(
            subject, answer, Perturbation.of(subject, answer, features, baseline)
        )
        rows = rows_run(shared, len(features), length)
        print(f"  {baseline:7s} {took:6.1f} s, ratio {plain / took:5.1f}; rows {rows}")


def rows_run(shared: SharedPrefix | str, cells: int, length: int) -> str:
    """Token rows of all ablations, of the plain loop's."""
    plain = (cells + 1) * length
    if isinstance(shared, str):
        return f"{plain} of {plain} (nothing shared: {shared})"
    for start in range(0, cells, 8):
        z = torch.ones(min(8, cells - start), cells)
        z[range(len(z)), range(start, start + len(z))] = 0
        shared(z)
    return f"{shared.rows_run} of {plain}"


def exact(subject: Subject) -> None:
    """The largest difference between shared and whole forwards, over a few cells."""
    answer = TargetResponse.of(subject, Image.new("RGB", (336, 336), "red"), QUESTION, ANSWER)
    features = Features.of(subject, answer.inputs, "grid", words=False)
    perturbation = Perturbation.of(subject, answer, features, "hidden")
    shared, z = SharedPrefix.of(subject, answer, perturbation), torch.ones(4, len(features))
    z[range(4), [0, 50, 100, 143]] = 0
    assert isinstance(shared, SharedPrefix)
    with torch.no_grad():
        whole = PerturbedModel(subject, answer, perturbation)(z)
        effect = (whole - shared(torch.ones(1, len(features)))).abs().max()
        difference = (shared(z) - whole).abs().max()
    print(
        f"largest difference to whole forwards: {float(difference):.1g} nat, of effects up to {float(effect):.1g}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wide", action="store_true", help="also at 7B widths: 4 layers, bfloat16, about 2 GB"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = build("tiny", 16, torch.float32)
    exact(subject)
    compare(subject, "tiny", sampled=5)
    if options.wide:
        compare(build("wide", 4, torch.bfloat16), "wide", sampled=3)


if __name__ == "__main__":
    main()
