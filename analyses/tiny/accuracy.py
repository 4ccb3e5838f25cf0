"""How well tiny-llava answers, and how it learned to: the numbers and the figure of this folder.

    python analyses/tiny/accuracy.py                      # the shipped weights, 2,000 frozen images
    python analyses/tiny/accuracy.py my-tiny-llava --images 200

Writes accuracy-by-*.csv beside itself, and learning-curve.png and .svg from learning-curve.csv (the
`log.csv` that the training wrote). About five minutes on one core.
"""

import argparse
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from probe.models.tiny import FOLDERS
from probe.models.tiny.questions import QUESTION_KINDS
from probe.models.tiny.scenes import sample_scene, stream
from probe.models.tiny.training.evaluate import evaluate, frozen, summary
from probe.models.tiny.training.stages import PATCH_ACCURACIES
from probe.models.tiny.weights import recipe_of
from probe.plots.style import below, finish, heading, legend, looks, styled

HERE = Path(__file__).parent
TABLES = {
    "kind": ["kind"],
    "distractors": ["kind", "distractors"],
    "key": ["kind", "key"],
    "things": ["kind", "things"],
    "layout": ["kind", "layout"],
}


def seen_layouts(folder: Path) -> set:
    """Every layout (what is where) that the training of these weights drew, from its recipe."""
    recipe, layouts = recipe_of(folder), set()
    for step in range(recipe.steps):
        rng = stream("training", recipe.seed, step)
        for _ in range(recipe.batch):
            layouts.add(sample_scene(rng, things=recipe.things, alike=recipe.alike).layout)
    return layouts


def tables(folder: Path, images: int) -> dict[str, pd.DataFrame]:
    """The accuracies, by each of `TABLES`."""
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    frame = evaluate(model, AutoProcessor.from_pretrained(folder), images, controls=True)
    seen = seen_layouts(folder)
    new = [frozen(number)[0].layout not in seen for number in range(images)]
    frame["layout"] = ["new" if new[number] else "seen in training" for number in frame["image"]]
    frame["things"] = frame["things"].astype(str)
    return {name: summary(frame, by).sort_index(key=_order).round(4) for name, by in TABLES.items()}


@styled()
def learning_curve(log: pd.DataFrame) -> plt.Figure:
    """Stage 0 on the left (patches), stage 1 on the right (validation images), over optimiser
    steps.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, width_ratios=(1, 2))
    titles = ("0: patches learn words", "1: the model learns to answer")
    for stage, names in enumerate((PATCH_ACCURACIES, QUESTION_KINDS)):
        part = log[log.stage == stage]
        for name, look in looks(names).items():
            axes[stage].plot(part.step, part[name], label=name, markevery=4, **look._asdict())
        finish(axes[stage], titles[stage], xlabel="optimiser step", ylim=(-0.02, 1.02))
        legend(axes[stage], ncols=2 + 2 * stage, handlelength=3.2, **below(axes[stage]))
    axes[0].set_ylabel("accuracy on validation images (fraction)")
    heading(figure, "How tiny-llava learned (a toy model: not a finding about LLaVA)")
    return figure


def _order(index: pd.Index) -> pd.Index:
    return (
        index.map({kind: i for i, kind in enumerate(QUESTION_KINDS)}.get)
        if index.name == "kind"
        else index
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Accuracies and learning curve of a tiny model.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDERS["tiny-llava"])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--draw", action="store_true", help="only the learning curve, from its csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = {} if options.draw else tables(options.folder, options.images)
    for name, table in measured.items():
        table.to_csv(options.out / f"accuracy-by-{name}.csv")
        print(table, end="\n\n")
    curve = learning_curve(pd.read_csv(HERE / "learning-curve.csv"))
    with matplotlib.rc_context({"svg.hashsalt": "probe"}):  # the same bytes each time
        curve.savefig(options.out / "learning-curve.png", dpi=120)
        curve.savefig(options.out / "learning-curve.svg", metadata={"Date": None})
