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


def draw_causal() -> None:
    """The two examples that `causal.md` computes with: a patch, and an area under the ROC curve."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
    runs = {"clean": -0.5, "patched": -1.5, "corrupted": -4.5}
    left.barh(list(runs), list(runs.values()), color=["#009E73", "#0072B2", "#D55E00"], height=0.5)
    left.invert_yaxis()
    for place, value in enumerate(runs.values()):
        left.text(value - 0.08, place, f"{value}", ha="right", va="center")
    left.annotate("", (-1.5, 1.42), (-4.5, 1.42), arrowprops={"arrowstyle": "->"})
    left.text(-3, 1.36, "comes back: 3.0 of 4.0", ha="center", va="bottom")
    left.set(xlim=(-5.2, 0), xlabel="log p of the gold answer (nat)")
    left.set_title("Denoising: the share is 0.75", loc="left")
    for value, colour, row in (
        (3, "#009E73", 1),
        (2, "#009E73", 1),
        (1, "#D55E00", 0),
        (2, "#D55E00", 0),
    ):
        right.scatter(value, row, s=80, color=colour, zorder=3)
        right.text(value, row + (0.16 if row else -0.28), str(value), ha="center")
    for first, second, dash in ((3, 1, "-"), (3, 2, "-"), (2, 1, "-"), (2, 2, ":")):
        right.plot([first, second], [1, 0], color="#999999", linestyle=dash, zorder=1)
    right.set_yticks([0, 1], ["wrong", "right"])
    right.set(xlim=(0.5, 3.5), ylim=(-0.5, 1.5), xlabel="a measure of each answer")
    right.set_title("AUROC = 3.5 of 4 pairs = 0.875", loc="left")
    figure.savefig(IMAGES / "causal.png", dpi=90)


if __name__ == "__main__":
    draw_example()
    draw_causal()
    draw_mass()
