"""The drawings of the documentation, made anew by `python docs/draw.py`."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import probe
from probe.evaluation.benchmarks import named
from probe.plots.style import LOOKS

IMAGES = Path(__file__).parent / "images"
WORDS = ["The", "picture", "patch 1", "patch 2", "colour", "red"]
TYPES = ["instruction", "instruction", "vision", "vision", "instruction", "response"]
# The example that `numbers.md` computes with.
WEIGHTS = np.array(
    [
        [1.00, 0.00, 0.00, 0.00, 0.00, 0.00],
        [0.60, 0.40, 0.00, 0.00, 0.00, 0.00],
        [0.50, 0.20, 0.30, 0.00, 0.00, 0.00],
        [0.40, 0.10, 0.10, 0.40, 0.00, 0.00],
        [0.30, 0.10, 0.30, 0.10, 0.20, 0.00],
        [0.20, 0.05, 0.45, 0.15, 0.10, 0.05],
    ]
)


def draw_example() -> None:
    """The attention matrix of one head: types in colour, invisible keys grey."""
    figure, axes = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
    visible = np.tril(np.ones_like(WEIGHTS, dtype=bool))
    axes.imshow(np.where(visible, np.nan, 1.0), cmap="Greys", vmin=0, vmax=6)
    shown = axes.imshow(np.where(visible, WEIGHTS, np.nan), cmap="Blues", vmin=0, vmax=1)
    for query, key in zip(*np.nonzero(visible), strict=True):
        weight = WEIGHTS[query, key]
        ink = "white" if weight > 0.55 else "black"
        axes.text(key, query, f"{weight:.2f}", ha="center", va="center", color=ink)
    labels = [f"{word}\n({kind})" for word, kind in zip(WORDS, TYPES, strict=True)]
    axes.set_xticks(range(6), labels, fontsize=8)
    axes.set_yticks(range(6), labels, fontsize=8)
    for tick, kind in zip(
        [*axes.get_xticklabels(), *axes.get_yticklabels()], TYPES * 2, strict=True
    ):
        tick.set_color(LOOKS[kind].color)
    for name, (start, width) in {"vision": (2, 2), "response": (5, 1)}.items():
        colour = LOOKS[name].color
        frame = plt.Rectangle(
            (start - 0.5, 4.5), width, 1, fill=False, edgecolor=colour, linewidth=3
        )
        axes.add_patch(frame)
    axes.set_title("Attention of one head: response → vision is 0.45 + 0.15 = 0.60")
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    figure.colorbar(shown, ax=axes, label="attention weight (fraction)")
    figure.savefig(IMAGES / "example.png", dpi=90)


def draw_mass() -> None:
    """Figure 2 of the paper for the shipped model: 24 drawn questions."""
    subject = probe.load("tiny-llava")
    samples = named("shapes").read(questions=24).samples
    record = probe.measure_samples(subject, samples, stacks=["llm"])
    probe.plots.mass(record).figure.savefig(IMAGES / "mass.png", dpi=80)


if __name__ == "__main__":
    draw_example()
    draw_mass()
