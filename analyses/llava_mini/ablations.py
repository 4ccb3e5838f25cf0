"""The ablations of the LLaVA-Mini paper in small: matched trainings on drawn images, beside what the
paper prints.

    python analyses/llava_mini/ablations.py --table 6     # 6, 7, 8, 11 or 12; without: all of them
    python analyses/llava_mini/ablations.py --table 12 --steps 2000 --batch 16 --seeds 5

All start from tiny-llava and differ in one thing; images, questions, steps and rates are the same,
a seed draws them and the new parts. Tables share their trainings. One that was stopped goes on;
finished ones are not trained again. Writes ablations.csv beside this file, of every table whose
trainings are there: percent right of 896 questions on 128 images that no training sees; the mean
over seeds with Student's 95 % interval, and the difference to the paper's own setting (one token, 4
pre-fusion layers), seed by seed.

Shares of the patches are matched, not numbers: 1, 4 and 9 of 36 tokens are the paper's 16, 64 and
144 of 576. tiny-llava has no 672 pixels. **Toys: nothing here is a finding about LLaVA-Mini.**
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from probe.models.tiny.training.mini_recipe import MiniRecipe
from probe.models.tiny.training.train import LOG
from probe.models.tiny.training.train_mini import train_mini
from probe.records.published import published

HERE = Path(__file__).parent
PATCHES, PAPERS_PATCHES = 36, 576
OWN = "query, 1 token, 4 layers"  # the paper's own setting

VARIANTS = {
    OWN: {},
    "query, 1 token, 0 layers": {"prefusion_layers": 0},
    "query, 4 tokens, 0 layers": {"prefusion_layers": 0, "compressor_size": 2},
    "query, 9 tokens, 0 layers": {"prefusion_layers": 0, "compressor_size": 3},
    "query, 1 token, 1 layer": {"prefusion_layers": 1},
    "query, 1 token, 2 layers": {"prefusion_layers": 2},
    "query, 1 token, 3 layers": {"prefusion_layers": 3},
    "query, 4 tokens, 4 layers": {"compressor_size": 2},
    "query, 9 tokens, 4 layers": {"compressor_size": 3},
    "average, 1 token, 4 layers": {"compression": "average"},
    "average, 4 tokens, 4 layers": {"compression": "average", "compressor_size": 2},
    "none, 36 tokens, 4 layers": {"compression": "none"},
    "in the LLM, 1 token, 4 layers": {"fusion": "in_llm"},
}
LAYERS = ["query, 1 token, 1 layer", "query, 1 token, 2 layers", "query, 1 token, 3 layers", OWN]
TABLES = {
    6: [f"query, {tokens}, 0 layers" for tokens in ("1 token", "4 tokens", "9 tokens")] + LAYERS,
    7: [OWN, "query, 4 tokens, 4 layers", "query, 9 tokens, 4 layers"],
    8: [
        "average, 1 token, 4 layers",
        OWN,
        "average, 4 tokens, 4 layers",
        "query, 4 tokens, 4 layers",
    ],
    11: [OWN, "none, 36 tokens, 4 layers"],
    12: [OWN, "in the LLM, 1 token, 4 layers"],
}
# Student's t, two-sided 95 %, by degrees of freedom
STUDENT = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
}


def recipe_of(name: str, seed: int, steps: int, batch: int) -> MiniRecipe:
    """The recipe of one training; the warm-up is a tenth of its steps."""
    matched = MiniRecipe(seed=seed, steps=steps, batch=batch, warmup=max(1, steps // 10))
    return replace(matched, **VARIANTS[name])


def folder_of(out: Path, name: str, recipe: MiniRecipe) -> Path:
    words = name.replace(", ", "-").replace(" ", "-")
    return out / f"{words}-{recipe.steps}x{recipe.batch}-seed{recipe.seed}"


def right(folder: Path, steps: int) -> float:
    """Percent right after the last step; NaN where that has not been reached."""
    log = folder / LOG
    if not log.exists():
        return np.nan
    reached: Any = pd.read_csv(log).set_index("step")["all"]
    return 100 * float(reached.get(steps, np.nan))


def train(out: Path, names: list[str], seeds: range, steps: int, batch: int) -> None:
    """Every training of these variants that is not finished."""
    for seed in seeds:
        for name in names:
            recipe = recipe_of(name, seed, steps, batch)
            folder = folder_of(out, name, recipe)
            if np.isnan(right(folder, steps)):
                train_mini(folder, recipe=recipe, every=min(steps, 200))
                print(f"{name}, seed {seed}: {right(folder, steps):.1f} % right", flush=True)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of some seeds, with Student's interval; NaN bounds for one seed."""
    mean = float(values.mean())
    if len(values) < 2 or len(values) - 1 not in STUDENT:
        return mean, np.nan, np.nan
    half = STUDENT[len(values) - 1] * float(values.std(ddof=1)) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def row(table: int, name: str, scores: pd.DataFrame, steps: int, batch: int) -> dict[str, object]:
    """One line of ablations.csv. `scores`: percent right, (seed, variant)."""
    recipe = recipe_of(name, 0, steps, batch)
    tokens = PATCHES if recipe.compression == "none" else recipe.compressor_size**2
    found: dict[str, object] = {
        "table": table,
        "variant": name,
        "share_of_patches": round(100 * tokens / PATCHES, 1),
        "steps": steps,
        "images_a_step": batch,
        "seeds": len(scores),
    }
    for column, values in {
        "right": scores[name],
        "difference": scores[name] - scores[OWN],
    }.items():
        estimate, low, high = interval(values.to_numpy())
        found |= {column: estimate, f"{column}_low": low, f"{column}_high": high}
    return found | _printed(table, recipe, tokens)


def _printed(table: int, recipe: MiniRecipe, tokens: int) -> dict[str, object]:
    """What the paper prints for the same setting, which is one token, or as large a share of the
    patches (as many tokens where it prints none of that share).
    """
    printed = published("llava_mini_ablations").query("table == @table and resolution == 336")
    in_llm = printed["method"].str.contains("within")
    same: Any = printed[in_llm]
    if recipe.fusion != "in_llm":
        as_deep = printed["prefusion_layers"] == recipe.prefusion_layers
        same = printed[~in_llm & as_deep & (printed["compression"] == recipe.compression)]
        as_large = same["vision_tokens"] == tokens * PAPERS_PATCHES // PATCHES
        as_many = same["vision_tokens"] == tokens
        same = same[as_large if as_large.any() and tokens > 1 else as_many]
    if same.empty:
        return {}
    names = ("vision_tokens", "vqav2", "gqa", "mmb")
    return {f"paper_{name}": same.iloc[0][name] for name in names}


def results(out: Path, seeds: range, steps: int, batch: int) -> pd.DataFrame:
    """Every table whose trainings are all finished."""
    rows = []
    for table, names in TABLES.items():
        needed = list(dict.fromkeys([OWN, *names]))
        scores = pd.DataFrame(
            {
                name: [
                    right(folder_of(out, name, recipe), steps)
                    for recipe in (recipe_of(name, seed, steps, batch) for seed in seeds)
                ]
                for name in needed
            }
        )
        if not scores.isna().any(axis=None):
            rows += [row(table, name, scores, steps, batch) for name in names]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=int, choices=TABLES, help="(default: all)")
    parser.add_argument("--steps", type=int, default=120, help="of each training (default: 120)")
    parser.add_argument("--batch", type=int, default=4, help="images a step (default: 4)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--out", type=Path, default=Path("probe-out/ablations"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = TABLES if options.table is None else {options.table: TABLES[options.table]}
    names = list(dict.fromkeys([OWN, *(name for table in asked.values() for name in table)]))
    seeds = range(options.seeds)
    train(options.out, names, seeds, options.steps, options.batch)
    found = results(options.out, seeds, options.steps, options.batch)
    found.to_csv(HERE / "ablations.csv", index=False, float_format="%.4g")
    shown = found if options.table is None else found.query("table == @options.table")
    print(shown.round(1).to_string(index=False))


if __name__ == "__main__":
    main()
