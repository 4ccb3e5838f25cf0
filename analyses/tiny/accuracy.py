"""How well tiny-llava answers, and how it learned to: the numbers and the figure of this folder.

    python analyses/tiny/accuracy.py                      # the shipped weights, 2,000 frozen images
    python analyses/tiny/accuracy.py my-tiny-llava --images 200

Writes accuracy-by-*.csv beside itself, and learning-curve.png and .svg from learning-curve.csv (the
`log.csv` that the training wrote). About five minutes on one core.
"""

import argparse
from pathlib import Path

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
from probe.plots.style import looks

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


def learning_curve(log: pd.DataFrame) -> plt.Figure:
    """Stage 0 on the left (patches), stage 1 on the right (validation images), over optimiser
    steps.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, width_ratios=(1, 2))
    for axes, stage, names in ((left, 0, PATCH_ACCURACIES), (right, 1, QUESTION_KINDS)):
        part = log[log.stage == stage]
        for name, look in looks(names).items():
            axes.plot(part.step, part[name], label=name, markersize=4, **look._asdict())
        axes.set(
            xlabel="step", title=("0: patches learn words", "1: the model learns to answer")[stage]
        )
        axes.legend(fontsize=8)
    left.set_ylabel("accuracy on validation images")
    figure.suptitle("tiny-llava (a toy model): learning curve")
    figure.tight_layout()
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
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, table in tables(options.folder, options.images).items():
        table.to_csv(options.out / f"accuracy-by-{name}.csv")
        print(table, end="\n\n")
    curve = learning_curve(pd.read_csv(HERE / "learning-curve.csv"))
    for ending in ("png", "svg"):
        curve.savefig(options.out / f"learning-curve.{ending}", dpi=150)
