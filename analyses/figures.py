"""Every kind of figure once, from the two shipped models: the contact sheet `figures.md`.

    python analyses/figures.py           # measures (some minutes on a CPU) and draws
    python analyses/figures.py --draw    # draws again from what was measured, without a model
    python analyses/figures.py --test    # measures less, into tests/golden/figures

What is measured goes to probe-out/analyses/figures, a small file for each dataset; the figures and
`figures.md` go beside this file. `tests/plots/test_layout.py` draws the same figures of both models
and checks that nothing overlaps.
"""

import argparse
import inspect
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import xarray as xr

import probe
from probe import plots
from probe.measures.cost import join as join_costs
from probe.measures.cost import read as read_cost
from probe.measures.cost import write as write_cost
from probe.plots.style import figure_of
from probe.records.part_files import read_part, write_part

HERE = Path(__file__).parent
FIGURES = HERE / "figures"
MEASURED = Path("probe-out/analyses/figures")
OF_TEST = HERE.parent / "tests" / "golden" / "figures"
MODELS = ("tiny-llava", "tiny-llava-mini")
QUESTIONS = 18  # on three images
JUDGED = 120  # on 20 images: answers of which some are wrong
DPI = 100
DATASETS = ("lens", "attribution", "gradients", "curves", "concentration", "reliability")
CAUSAL = ("head-sweep", "patch-sweep", "steering", "video")
OF_SAMPLES = ("record", "fine", "drop", "answers", *CAUSAL)
COSTS = ("cost", "answers-cost")

Data = dict[str, Any]


def measured(model: str, questions: int = QUESTIONS, over: str = "patches") -> Data:
    """{name: dataset} of everything that is drawn of one model.

    over: the regions of attributions, as in `probe.attribute`.
    """
    from probe.evaluation.benchmarks import named
    from probe.measures.encoder_concentration import concentration
    from probe.models.tiny.questions import sample_image

    subject = probe.load(model)
    image, question, _ = sample_image(seed=0, kind="colour")
    samples = named("shapes").read(questions=questions).samples
    options: dict[str, Any] = {"over": over, "progress": False}
    attributed = probe.attribute(subject, image, question, **options)
    answer = attributed["token_id"].values.tolist()
    scores = {
        "ablation": attributed["attribution"],
        "attention (contribution)": attributed["contribution"].mean("head").max("layer"),
    }
    with warnings.catch_warnings():  # the figure says by how much integrated gradients are off
        warnings.filterwarnings("ignore", message="attribute: integrated_gradients is off")
        gradients = probe.attribute(
            subject, image, question, answer, "integrated_gradients", **options
        )
    return {
        "record": probe.measure_samples(subject, samples, contribution=True, progress=False),
        "fine": probe.measure(subject, image, question, types="fine", contribution=True),
        "lens": probe.logit_lens(subject, image, question),
        "attribution": attributed,
        "gradients": gradients,
        "curves": probe.deletion_curves(
            subject, image, question, scores, answer, over, baseline="mean"
        ),
        "concentration": concentration(
            subject, [sample_image(seed)[0] for seed in range(8)], top=(1, 4, 9)
        ),
        "cost": probe.cost(subject, measure=5),
        "drop": _dropped(subject, questions),
    }


def causal(questions: int = QUESTIONS) -> Data:
    """Sweeps of heads, patches and steering on tiny-llava; tiny-llava-mini on a short video."""
    from probe.evaluation.benchmarks import named
    from probe.models.tiny.questions import sample_image
    from probe.models.tiny.scene_pairs import scene_pairs

    subject = probe.load("tiny-llava")
    samples = named("shapes").read(questions=questions).samples
    pairs = scene_pairs(questions // 3 or 1)
    layer, half = 4, len(samples) // 2 or 1
    towards = probe.direction(subject, samples[:half], samples[half:], layer=layer)
    frames = [sample_image(seed)[0].resize((60, 60)) for seed in range(6)]
    mini = probe.load("tiny-llava-mini")
    return {
        "head-sweep": probe.head_sweep(subject, samples, progress=False),
        "patch-sweep": probe.patch_sweep(subject, pairs, progress=False),
        "steering": probe.steering_curve(subject, samples, towards, progress=False),
        "video": probe.measure(mini, probe.Video(frames, fps=1.0), "what ?", stacks=["llm"]),
    }


def judged(questions: int = JUDGED) -> Data:
    """Whether attention of tiny-llava tells right answers from wrong ones."""
    from probe.evaluation.attention_run import AttentionRun
    from probe.evaluation.task import BenchmarkTask

    task = BenchmarkTask.read("shapes", limit=questions)
    measuring = AttentionRun(probe.load("tiny-llava"), task, contribution=True)
    with TemporaryDirectory() as folder:
        run = measuring.run(folder)
        return {"reliability": probe.reliability(measuring.results(run), progress=False)}


def _dropped(subject: Any, questions: int) -> xr.DataTree:
    """A run of `probe drop`: a table a mode, and the attention on vision."""
    from probe.evaluation.drop_run import DropRun
    from probe.evaluation.task import BenchmarkTask

    windows = probe.windows(2)
    everything = [windows, probe.from_layer(), probe.until_layer()]
    modes = {"mask": everything, "zero": windows, "swap": windows}
    dropping = DropRun(subject, BenchmarkTask.read("shapes", limit=questions), modes)
    with TemporaryDirectory() as folder:
        return dropping.results(dropping.run(folder))


def compared(questions: int = QUESTIONS) -> Data:
    """Answers and costs of three reducers and their controls on tiny-llava, with tiny-llava-mini
    next to them.
    """
    from probe.cli.reduce_methods import budgets_of, methods_of
    from probe.evaluation.method_comparison import Comparison
    from probe.evaluation.task import BenchmarkTask

    subjects = [probe.load(model) for model in MODELS]
    budgets = budgets_of(subjects[0], [0.5, 0.25])
    kinds = ["visionzip", "fastv", "grid", "random", "downsample"]
    methods = methods_of(subjects[0], kinds, budgets, subjects[1:], seeds=3)
    comparison = Comparison(methods, BenchmarkTask.read("shapes", limit=questions))
    with TemporaryDirectory() as folder:
        answers = comparison.results(comparison.run(folder))
    return {"answers": answers, "answers-cost": comparison.costs(answers, 5)}


def kept() -> Any:
    """What VisionZip leaves of one image; it takes the encoder and no measurement."""
    from probe.models.tiny.questions import sample_image
    from probe.reducers import VisionZip, encode

    subject = probe.load("tiny-llava")
    image, question, _ = sample_image(seed=0)
    inputs = subject.encode(image, question)
    tower: Any = subject.model.base_model.vision_tower
    layer = subject.model.config.vision_feature_layer
    reduction = encode(tower, inputs["pixel_values"], VisionZip(7, 2), layer)
    return plots.kept(reduction, image, inputs.encoder_grid[0])


def without_frames() -> Any:
    """Which third of two short videos tiny-llava-mini needs, in some layers and in more."""
    from probe.models.tiny.questions import sample_image

    samples = []
    for number in range(2):
        pictures = [sample_image(3 * number + seed) for seed in range(3)]
        _, question, answer = pictures[0]
        video = probe.Video([picture.resize((60, 60)) for picture, _, _ in pictures])
        samples.append(probe.Sample(str(number), video, question, answer=answer))
    cases = probe.frame_parts(3, [range(2), range(4)])
    options: dict[str, Any] = {"max_new_tokens": 1, "progress": False}
    table = probe.drop_sweep(probe.load("tiny-llava-mini"), samples, cases, **options)
    return plots.dropped_parts(table, value="total_variation")


def drawings(data: Data) -> dict[str, Callable[[], Any]]:
    """{name of a plot, and what is special: how to draw it} of what was measured on one model."""
    record, fine, run = data["record"], data["fine"], data["drop"]
    both = {"ablation": data["attribution"], "integrated gradients": data["gradients"]}
    lens_layers = [0, data["lens"].sizes["layer"] - 1]
    drawn: dict[str, Callable[[], Any]] = {
        "mass": lambda: plots.mass(record),
        "mass, lift": lambda: plots.mass(record, value="lift"),
        "mass, contribution": lambda: plots.mass(record, value="contribution"),
        "mass, fine types": lambda: plots.mass(fine),
        "mass, encoder": lambda: plots.mass(record, "vision"),
        "entropy": lambda: plots.entropy(record),
        "entropy, ratio": lambda: plots.entropy(record, ratio=True),
        "heads": lambda: plots.heads(record),
        "heatmaps": lambda: plots.heatmaps(record),
        "conventions": lambda: plots.conventions(fine),
        "dropped": lambda: plots.dropped(run),
        "readings": lambda: plots.readings(run),
        "readings, kl": lambda: plots.readings(run, value="kl"),
        "swaps": lambda: plots.swaps(run),
        "depth": lambda: plots.depth(run),
        "flops": lambda: plots.flops(data["cost"]),
        "latency": lambda: plots.latency(data["cost"]),
        "memory": lambda: plots.memory(data["cost"], "vision_tokens"),
        "attribution": lambda: plots.attribution(both),
        "agreement": lambda: plots.agreement(both, curves=data["curves"]),
        "lens": lambda: plots.lens(data["lens"], lens_layers),
        "lens_curves": lambda: plots.lens_curves(data["lens"]),
        "concentration": lambda: plots.concentration(data["concentration"]),
        "softmax_gradient": lambda: plots.softmax_gradient(data["concentration"]),
    }
    if "prefusion" in record.children:
        drawn["mass, pre-fusion"] = lambda: plots.mass(record, "prefusion")
        drawn["compression"] = lambda: plots.compression(record)
    return drawn


def comparisons(data: Data, of_models: dict[str, Data]) -> dict[str, Callable[[], Any]]:
    """The plots that take more than one model."""
    costs = join_costs([one["cost"] for one in of_models.values()])
    counted = [
        probe.cost(model, vision_tokens=tokens, name=f"{model}, {tokens} vision tokens")
        for model, most in (("tiny-llava", 36), ("tiny-llava-mini", 1))
        for tokens in sorted({1, most // 4 or 1, most})
    ]
    return {
        "head_effects": lambda: plots.head_effects(data["head-sweep"]),
        "recovered": lambda: plots.recovered(data["patch-sweep"]),
        "steering": lambda: plots.steering(data["steering"]),
        "reliability": lambda: plots.reliability(data["reliability"]),
        "frames": lambda: plots.frames(data["video"]),
        "reductions": lambda: plots.reductions(data["answers"], data["answers-cost"]),
        "reducer_benchmark": lambda: plots.reducer_benchmark(data["answers"], data["answers-cost"]),
        "flops": lambda: plots.flops(costs),
        "latency": lambda: plots.latency(costs),
        "memory": lambda: plots.memory(join_costs(counted), "vision_tokens"),
        "relative_cost": lambda: plots.relative_cost(costs),
        "kept": kept,
        "dropped_parts": without_frames,
    }


def save(data: Data, name: str, folder: Path = MEASURED) -> None:
    """A file for each dataset: `{name}-{kind}` and the ending of how it is stored."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, dataset in data.items():
        path = folder / f"{name}-{kind}"
        if kind in COSTS:
            write_cost(dataset, path.with_suffix(".json"))
        elif kind in OF_SAMPLES:
            with TemporaryDirectory() as parts:
                part = write_part(dataset, Path(parts))
                shutil.copyfile(part, f"{path}.zarr.zip")
        else:
            probe.save_record(dataset, f"{path}.zarr.zip")


def opened(name: str, folder: Path = MEASURED) -> Data:
    """What `save` wrote under this name."""
    data: Data = {}
    for kind in (*DATASETS, *OF_SAMPLES, *COSTS):
        path = folder / f"{name}-{kind}"
        archive, table = Path(f"{path}.zarr.zip"), path.with_suffix(".json")
        if table.exists():
            data[kind] = read_cost(table)
        elif archive.exists():
            data[kind] = read_part(archive) if kind in OF_SAMPLES else probe.open_record(archive)
    return data


def how_to_read(plot: Callable[..., Any]) -> str:
    """What the documentation of a plot says about reading it."""
    text = inspect.getdoc(plot) or ""
    found = re.search(r"How to read it: (.*?)(?:\n\n|$)", text, re.DOTALL)
    sentences = " ".join(found.group(1).split()) if found else ""
    sentences = re.sub(r" Raises ProbeError.*", "", sentences)
    return sentences[:1].upper() + sentences[1:]


def write(shown: dict[str, Any]) -> None:
    """The figures, and the sheet that shows each with how to read it."""
    FIGURES.mkdir(exist_ok=True)
    parts = [
        "# Every kind of figure\n\nMade by `python analyses/figures.py` on the shipped models: "
        f"{QUESTIONS} questions on three images. They show how a figure looks and is read; what "
        "the toys do is no finding about LLaVA. In Python each is `probe.plots.NAME`, and its "
        "documentation says what it takes."
    ]
    for name, drawn in shown.items():
        figure = figure_of(drawn())
        figure.savefig(FIGURES / f"{name}.png", dpi=DPI, bbox_inches="tight", facecolor="white")
        plt.close(figure)
        text = how_to_read(getattr(plots, name))
        parts.append(f"## {name}\n\n![{name}](figures/{name}.png)\n\n{text}")
    (HERE / "figures.md").write_text("\n\n".join(parts) + "\n")


def measure(folder: Path, questions: int, over: str) -> None:
    """Measures both models, and the comparison, and saves everything in the folder."""
    for model in MODELS:
        save(measured(model, questions, over), model, folder)
    save(compared(questions) | causal(questions), "compared", folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true", help="only draw what was measured before")
    parser.add_argument("--test", action="store_true", help="measure what the test draws, less")
    options = parser.parse_args()
    if options.test:
        measure(OF_TEST, questions=3, over="grid")
        return
    if not options.draw:
        measure(MEASURED, QUESTIONS, over="patches")
        save(judged(), "compared", MEASURED)
    of_models = {model: opened(model) for model in MODELS}
    drawn = drawings(of_models["tiny-llava-mini"]) | drawings(of_models["tiny-llava"])
    drawn |= comparisons(opened("compared"), of_models)
    write({name: drawn[name] for name in plots.__all__ if name in drawn})


if __name__ == "__main__":
    main()
