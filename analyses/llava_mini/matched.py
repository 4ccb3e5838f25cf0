"""What pre-fusion brings, and what its start: four trainings that differ in one thing, beside the
shipped models.

    python analyses/llava_mini/matched.py         # trains all four, 1,000 steps each: about an hour
    python analyses/llava_mini/matched.py --only no-pre-fusion  # one of them
    python analyses/llava_mini/matched.py --steps 2000 --out probe-out/matched-2000

Same images, questions, steps, rates and seed; fp32, one thread. A run that was stopped goes on.
Writes matched.csv (accuracy on the frozen images, in percent) and matched-curves.csv (accuracy on
validation images while training) beside itself, of all runs that are finished.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from probe.models.tiny import FOLDERS
from probe.models.tiny.training.evaluate import evaluate, summary
from probe.models.tiny.training.mini_recipe import MiniRecipe
from probe.models.tiny.training.packed_rows import answer_logits, fused_logits
from probe.models.tiny.training.train_mini import train_mini

HERE = Path(__file__).parent
LAYERS = MiniRecipe().prefusion_layers
VARIANTS = {
    "reference": MiniRecipe(),
    "no-pre-fusion": MiniRecipe(prefusion_layers=0),
    "extra-llm-layers": MiniRecipe(prefusion_layers=0, extra_layers=LAYERS),
    "random-pre-fusion": MiniRecipe(copied=False),
}
MADE = "made.json"  # in a variant's folder, once it is finished


def accuracy(folder: Path, images: int) -> dict[str, float]:
    """Percent right on the frozen images, in all and by kind, and the number of parameters."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    logits = fused_logits if hasattr(model.model, "prefusion") else answer_logits
    frame = evaluate(model, AutoProcessor.from_pretrained(folder), images, logits=logits)
    right = 100 * summary(frame, "kind")["right"]
    total = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": total, "all": 100 * frame["right"].to_numpy().mean(), **right.to_dict()}


def row(name: str, folder: Path, steps: int, images: int) -> pd.DataFrame:
    """One line of matched.csv; computed once."""
    made = folder / MADE
    if not made.exists():
        found = {"model": name, "steps": steps, **accuracy(folder, images)}
        pd.DataFrame([found]).to_json(made, orient="records")
    return pd.read_json(made)


def main(steps: int, out: Path, only: str | None, images: int) -> None:
    torch.set_num_threads(1)
    for name, recipe in VARIANTS.items():
        if only in (None, name) and not (out / name / MADE).exists():
            train_mini(out / name, recipe=replace(recipe, steps=steps))
            print(row(name, out / name, steps, images).round(2).to_string(index=False), flush=True)
    done = [name for name in VARIANTS if (out / name / MADE).exists()]
    shipped = [
        pd.DataFrame([{"model": name, "steps": None, **accuracy(folder, images)}])
        for name, folder in FOLDERS.items()
    ]
    table = pd.concat(
        [*shipped, *(row(name, out / name, steps, images) for name in done)], ignore_index=True
    )
    table["steps"] = table["steps"].astype("Int64")
    table.round(2).to_csv(HERE / "matched.csv", index=False)
    curves = [pd.read_csv(out / name / "log.csv").assign(model=name) for name in done]
    if curves:
        pd.concat(curves, ignore_index=True).to_csv(HERE / "matched-curves.csv", index=False)
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Matched trainings of tiny-llava-mini.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("probe-out/matched"))
    parser.add_argument("--only", choices=VARIANTS)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    main(options.steps, options.out, options.only, options.images)
