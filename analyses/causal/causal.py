"""What carries the answer of the shipped models: heads, layers and positions, a direction, patches.

    python analyses/causal/causal.py                 # some minutes a model; what is there is kept
    python analyses/causal/causal.py --few           # a few questions: whether it runs

What is measured goes to probe-out/analyses/causal, a file for each dataset; what is there is not
measured again. Writes heads.csv, patches.csv, figures and the tables of README.md beside this file.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr

import probe
from probe.evaluation.benchmarks import named
from probe.models.tiny.questions import sample_image
from probe.models.tiny.scene_pairs import CHANGES, scene_pairs
from probe.plots.style import finish, heading, legend, looks, styled
from probe.records.bootstrap import bootstrap
from probe.records.head_effects import head_effects
from probe.records.part_files import read_part, write_part
from probe.records.patch_effects import agreement, recovered

HERE = Path(__file__).parent
MEASURED = Path("probe-out/analyses/causal")
STACKS = {"tiny-llava": ("llm",), "tiny-llava-mini": ("llm", "prefusion")}
FLOWS = ("rollout", "gradient_rollout", "grad_cam", "contribution")
FLOW_MODEL = "tiny-llava"  # tiny-llava-mini's one vision token has no place in the image
STEERED_LAYER = 3  # from 0
TOP = 5  # heads in a table
QUIET: dict[str, Any] = {"progress": False}


def kept(name: str, measure: Callable[[], xr.Dataset]) -> xr.Dataset:
    """What was measured under this name before, else what is measured now."""
    path = MEASURED / f"{name}.zarr.zip"
    if not path.exists():
        MEASURED.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=MEASURED) as folder:
            write_part(measure(), Path(folder)).rename(path)
    found = read_part(path)
    assert isinstance(found, xr.Dataset)
    return found


def pairs_of(count: int) -> list[probe.Sample]:
    """Pairs of each change."""
    return [pair for change in CHANGES for pair in scene_pairs(count, change)]


def about_colour(word: str, count: int) -> list[probe.Sample]:
    """Drawn questions about a colour whose answer is this word."""
    found = []
    seed = 0
    while len(found) < count:
        image, question, answer = sample_image(seed, kind="colour")
        if word in answer.split():
            meta = {"image": str(seed)}
            found.append(probe.Sample(f"{word}-{seed}", image, question, answer=answer, meta=meta))
        seed += 1
    return found


def steered(subject: Any, count: int) -> xr.Dataset:
    """Red less blue, read on some questions, added on others whose answer is blue."""
    red = about_colour("red", count)
    blue = about_colour("blue", 2 * count)
    towards = probe.direction(subject, red, blue[:count], layer=STEERED_LAYER)
    return probe.steering_curve(subject, blue[count:], towards, **QUIET)


def deletions(subject: Any, count: int) -> xr.Dataset:
    """Deletion curves of flow maps and of ablation, a sample for each question."""
    kinds = ("colour", "at", "where", "exist")
    curves: list[xr.Dataset] = []
    for seed in range(count):
        image, question, _ = sample_image(seed, kinds[seed % len(kinds)])
        ablation = probe.attribute(subject, image, question, words=False, attention=False, **QUIET)
        said = ablation["token_id"].values.tolist()
        scores = {"ablation": ablation["attribution"]}
        for method in FLOWS:
            flow = probe.flow(subject, image, question, said, method=method, attention=False)
            scores[method] = flow["attribution"]
        curve = probe.deletion_curves(
            subject, image, question, scores, said, baseline="mean", seed=seed
        )
        curves.append(curve.expand_dims(sample=[f"seed {seed}"]))
    found: Any = xr.concat(curves, "sample", combine_attrs="override")
    return found


def measured(questions: int, pairs: int, colours: int, flows: int) -> dict[str, xr.Dataset]:
    """{model, stack and kind: dataset}."""
    samples = named("shapes").read(questions=questions).samples
    both = pairs_of(pairs)
    found = {}
    for model, stacks in STACKS.items():
        subject = probe.load(model)
        for stack in stacks:
            name = f"{model}-{stack}"
            options: dict[str, Any] = {"stack": stack, **QUIET}
            found[f"{name}-heads"] = kept(
                f"{name}-heads-{questions}",
                lambda: probe.head_sweep(subject, samples, **options),  # noqa: B023
            )
            found[f"{name}-patches"] = kept(
                f"{name}-patches-{pairs}",
                lambda: probe.patch_sweep(subject, both, direction="both", **options),  # noqa: B023
            )
        found[f"{model}-estimate"] = kept(
            f"{model}-estimate-{pairs}",
            lambda: probe.attribution_patching(subject, both, direction="both", **QUIET),  # noqa: B023
        )
        found[f"{model}-steering"] = kept(
            f"{model}-steering-{colours}",
            lambda: steered(subject, colours),  # noqa: B023
        )
        if model == FLOW_MODEL:
            found[f"{model}-deletion"] = kept(
                f"{model}-deletion-{flows}",
                lambda: deletions(subject, flows),  # noqa: B023
            )
    return found


@styled()
def draw_deletion(curves: xr.Dataset) -> Any:
    """Log-probability of the answer over the fraction of patches taken away, mean over questions."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.4), sharey=True)
    names = [str(name) for name in curves["score"].values]
    for axis, direction in zip(axes, ("deletion", "insertion"), strict=True):
        chosen = curves["logprob"].sel(direction=direction)
        for name, look in looks(names).items():
            mean = chosen.sel(score=name).mean("sample")
            axis.plot(100 * curves["fraction"], mean, label=name, **look._asdict())
        word = "taken away" if direction == "deletion" else "given back"
        finish(axis, direction, xlabel=f"patches {word} (%)", ylabel="log p of the answer (nat)")
    legend(axes[1], loc="upper left", bbox_to_anchor=(1.01, 1))
    count = curves.sizes["sample"]
    heading(
        figure, f"Patches in the order of each score · {curves.attrs['model']}, {count} questions"
    )
    return figure


def draw(found: dict[str, xr.Dataset]) -> None:
    """The figures."""
    drawings = {
        "heads": probe.plots.head_effects,
        "patches": probe.plots.recovered,
        "estimate": probe.plots.recovered,
        "steering": probe.plots.steering,
        "deletion": draw_deletion,
    }
    for name, dataset in found.items():
        figure = drawings[name.rsplit("-", 1)[1]](dataset)
        figure.savefig(HERE / f"{name}.png", dpi=80, facecolor="white", bbox_inches="tight")
        plt.close(figure)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bounds(row: Any, name: str, digits: int = 2) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def heads_table(name: str, sweep: xr.Dataset) -> list[str]:
    effects: Any = head_effects(sweep)
    significant = int(effects["significant"].sum())
    title = (
        f"**Heads of {name}** ({sweep.attrs['weights']}; {sweep.sizes['sample']} questions on "
        f"{len(np.unique(sweep['image'].values))} images; mode {sweep.attrs['mode']}): {significant} of "
        f"{len(effects)} significant at a false discovery rate of 5 %, by the picture's effect."
    )
    rows = [
        [
            f"layer {int(row['layer']) + 1}, head {int(row['head']) + 1}",
            bounds(row, "effect"),
            bounds(row, "picture_effect"),
            bounds(row, "accuracy_change", 1),
            f"{row['q']:.3f}",
        ]
        for row in effects.head(TOP).to_dict("records")
    ]
    header = ["head", "log p lost (nat)", "of the picture (nat)", "accuracy (points)", "q"]
    return [title, markdown(header, rows)]


def patches_table(name: str, sweep: xr.Dataset) -> list[str]:
    both = recovered(sweep)
    table: Any = both[both["direction"] == "denoise"]
    groups = list(dict.fromkeys(table["group"]))
    rows = []
    for layer, one in table.groupby("layer"):
        of_group = {row["group"]: row for row in one.to_dict("records")}
        rows.append(
            [str(int(layer) + 1), *(bounds(of_group[group], "recovered") for group in groups)]
        )
    title = (
        f"**Patches in {name}**, residual, denoising: share of the difference brought back "
        f"({sweep.sizes['sample']} pairs, {', '.join(CHANGES)} in equal parts)."
    )
    return [title, markdown(["layer", *groups], rows)]


def steering_table(model: str, curve: xr.Dataset) -> list[str]:
    images = curve["image"].values.astype(str)
    change = curve["steered_logprob"] - curve["untouched_logprob"]
    columns = {
        "change of log p (nat)": change,
        "accuracy (%)": 100 * curve["correct"],
        "KL (nat)": curve["kl"],
    }
    rows = [[name, *_means(values, images)] for name, values in columns.items()]
    scales = [f"{scale:g}" for scale in curve["scale"].values]
    title = (
        f"**Steering {model}**: red less blue, read after layer {STEERED_LAYER + 1}, added there at "
        f"all positions; {curve.sizes['sample']} other questions whose answer is blue."
    )
    return [title, markdown(["scale", *scales], rows)]


def _means(values: xr.DataArray, images: np.ndarray) -> list[str]:
    interval = bootstrap(values.transpose("sample", ...).values.astype(float), images, seed=0)
    numbers = zip(interval.estimate, interval.low, interval.high, strict=True)
    return [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in numbers]


def deletion_table(model: str, curves: xr.Dataset) -> list[str]:
    """Areas below deletion and insertion, and each map's paired difference to ablation's own."""
    area = curves["logprob"].integrate("fraction").transpose("sample", "score", "direction")
    questions = curves["sample"].values.astype(str)
    rows = []
    for score in map(str, area["score"].values):
        cells = []
        for direction in ("deletion", "insertion"):
            own = area.sel(score=score, direction=direction)
            ablation = area.sel(score="ablation", direction=direction)
            both = xr.concat([own, own - ablation], "what", coords="minimal", compat="override")
            cells += _means(both, questions)
        rows.append([score, *cells])
    header = ["score", "deletion (low is good)", "less ablation's"]
    header += ["insertion (high is good)", "less ablation's"]
    title = (
        f"**Flow maps of {model}** by deletion curves, patches made grey: area below log p of the answer "
        f"(nat), {len(questions)} questions, one image each."
    )
    return [title, markdown(header, rows)]


def agreement_table(found: dict[str, xr.Dataset]) -> list[str]:
    rows = []
    for model in STACKS:
        exact, estimate = found[f"{model}-llm-patches"], found[f"{model}-estimate"]
        for direction in map(str, exact["direction"].values):
            pair = [each.sel(direction=[direction]) for each in (exact, estimate)]
            numbers = agreement(*pair)
            rows.append([model, direction, *(f"{value:.2f}" for value in numbers.values())])
    header = ["model", "direction", "Spearman", "Pearson", "slope, exact on estimate", "same sign"]
    title = (
        "**Attribution patching beside exact patches**, over the cases of the tables above (LLM)."
    )
    return [title, markdown(header, rows)]


def write(found: dict[str, xr.Dataset]) -> None:
    """The tables of README.md, heads.csv and patches.csv."""
    parts: list[str] = []
    heads, patches = [], []
    for model, stacks in STACKS.items():
        for stack in stacks:
            name = f"{model}-{stack}"
            sweep, pairs = found[f"{name}-heads"], found[f"{name}-patches"]
            parts += heads_table(f"{model}, {stack}", sweep)
            parts += patches_table(f"{model}, {stack}", pairs)
            heads.append(head_effects(sweep).assign(model=model, stack=stack))
            patches.append(recovered(pairs).assign(model=model, stack=stack))
    parts += agreement_table(found)
    for model in STACKS:
        parts += steering_table(model, found[f"{model}-steering"])
    parts += deletion_table(FLOW_MODEL, found[f"{FLOW_MODEL}-deletion"])
    for name, frames in (("heads", heads), ("patches", patches)):
        pd.concat(frames).to_csv(HERE / f"{name}.csv", index=False, float_format="%.4g")
    readme = HERE / "README.md"
    words = readme.read_text().split("<!-- tables -->")[0]
    readme.write_text(words + "<!-- tables -->\n" + "\n\n".join(parts) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--few", action="store_true", help="a few questions: whether it runs")
    options = parser.parse_args()
    sizes = (6, 1, 2, 1) if options.few else (90, 15, 12, 16)
    found = measured(*sizes)
    draw(found)
    write(found)


if __name__ == "__main__":
    main()
