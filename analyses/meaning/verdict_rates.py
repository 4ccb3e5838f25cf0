"""How often does the verdict on agreement say "Yes" where it must not, and where it must?

    python analyses/meaning/verdict_rates.py                # 200 tries of each kind: about 15 min
    python analyses/meaning/verdict_rates.py --tries 20 --kinds planted --images 1

    shuffled    tiny-llava with shuffled weights (another shuffle each try), drawn pictures
    noise       tiny-llava on pictures of uniform noise. It is a trained model, which may truly
                depend on what it attends to in noise: "Yes" is not always false here
    planted     models that read drawn patches in drawn layers only (one image): "Yes" is right

Each try attributes by ablation and by integrated gradients, as `probe attribute` does. Writes
verdict_rates.csv next to this file: a row for each kind and number of images, the share of each
verdict, and of "Yes" where ablation is the only attribution.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image
from tqdm import trange

import probe
from probe.measures.attribution.weight_randomisation import randomised
from probe.models.planted import GRID, planted
from probe.models.tiny.questions import sample_image
from probe.plots.attention_agreement import verdict
from probe.records.rank_agreement import MEASURES, rank_agreement

KINDS = ("shuffled", "noise", "planted")
QUESTIONS = ("colour", "at", "where", "exist")
SIDE = 48  # of a picture of noise
BATCH = 36  # perturbed inputs a forward
FALLBACK = "red"  # the answer of a model that says nothing


def asked(kind: str, images: int, seed: int, subject: Any) -> tuple[Any, list[Any], str]:
    """The subject, images and question of a try."""
    generator = np.random.default_rng(seed)
    if kind == "planted":
        layers = generator.choice(6, size=generator.integers(1, 3), replace=False)
        patches = generator.choice(GRID * GRID, size=generator.integers(2, 6), replace=False)
        known = planted(layers.tolist(), patches.tolist())
        loaded = probe.load(known.model, processor=known.processor)
        return loaded, [known.image("red", seed)], known.question
    question = sample_image(seed, QUESTIONS[seed % len(QUESTIONS)])[1]
    if kind == "noise":
        pixels = generator.integers(0, 256, (images, SIDE, SIDE, 3), dtype=np.uint8)
        return subject, [Image.fromarray(one) for one in pixels], question
    drawn = [sample_image(seed + 1000 * i, "colour")[0] for i in range(images)]
    return randomised(subject, seed), drawn, question


def attributed(subject: Any, images: list[Any], question: str) -> dict[str, xr.Dataset]:
    """The answer attributed by two methods; both hold the attention of the first."""
    options: dict[str, Any] = {"words": False, "progress": False, "batch": BATCH}
    said = subject.answer(images, question, max_new_tokens=4) or FALLBACK
    first = probe.attribute(subject, images, question, said, **options)
    other = probe.attribute(
        subject, images, question, said, "integrated_gradients", attention=False, **options
    )
    return {"ablation": first, "integrated gradients": other.merge(first[list(MEASURES)])}


def judged(found: dict[str, xr.Dataset]) -> dict[str, str]:
    """The first word of the verdict, and of that by the first attribution alone."""
    alone = {"ablation": found["ablation"]}
    verdicts = {"verdict": rank_agreement(found), "alone": rank_agreement(alone)}
    return {name: verdict(table).split()[0].rstrip(":") for name, table in verdicts.items()}


def rows(kinds: list[str], numbers: list[int], tries: int) -> Iterator[dict[str, Any]]:
    subject = probe.load("tiny-llava")
    for kind in kinds:
        for images in [1] if kind == "planted" else numbers:
            found = []
            seeds = trange(tries, desc=f"{kind}, images: {images}")
            for seed in seeds:
                found.append(judged(attributed(*asked(kind, images, seed, subject))))
                seeds.set_postfix(yes=sum(one["verdict"] == "Yes" for one in found))
            yield {"kind": kind, "images": images, "tries": tries} | shares(found)


def shares(found: list[dict[str, str]]) -> dict[str, float]:
    """Of each verdict among these."""
    verdicts = [one["verdict"] for one in found]
    share = {word: verdicts.count(word) / len(found) for word in ("Yes", "No", "Can't")}
    alone = [one["alone"] for one in found]
    return share | {"Yes by ablation alone": alone.count("Yes") / len(found)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--images", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "verdict_rates.csv")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    table = pd.DataFrame(rows(options.kinds, options.images, options.tries))
    table.to_csv(options.out, index=False, float_format="%.4g")
    print(table)


if __name__ == "__main__":
    main()
