"""Where tiny-llava-mini fuses image and words, beside tiny-llava, whose LLM reads every patch
itself.

    python analyses/llava_mini/fusion.py  # accuracy, attention, dropping in both stacks: ten minutes
    python analyses/llava_mini/fusion.py --draw    # figures and table again, from what was measured
    python analyses/llava_mini/fusion.py --without probe-out/matched/no-pre-fusion

What is measured goes to probe-out/analyses/llava_mini, a folder for each state of the weights, and
is not measured again; figures, csv and the table of README.md go beside this file. `--without` adds
a model that was trained without pre-fusion (`matched.py` makes it).
"""

import argparse
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

import probe
from probe.cli.benchmark_run import show_progress
from probe.evaluation.drop_effects import ALL, effects
from probe.evaluation.drop_run import DropRun
from probe.evaluation.sample_run import load_run
from probe.evaluation.task import BenchmarkTask
from probe.models.tiny.scenes import draw
from probe.models.tiny.training.evaluate import evaluate, frozen
from probe.models.tiny.training.packed_rows import answer_logits, fused_logits
from probe.plots.style import title
from probe.records.bootstrap import Interval, bootstrap, paired
from probe.records.run_directory import RunDirectory
from probe.subject.weights_hash import weights_hash

HERE = Path(__file__).parent
RUNS = Path("probe-out/analyses/llava_mini")
LLAVA, MINI, WITHOUT = "tiny-llava", "tiny-llava-mini", "without pre-fusion"
BY_TWO, BY_ONE = [probe.windows(2)], [probe.windows(1), probe.from_layer()]
SWEEPS: dict[
    str, tuple[str, dict[str, Any], list]
] = {  # name -> model, what is cut off from vision, cases
    LLAVA: (LLAVA, {}, BY_TWO),
    MINI: (MINI, {}, BY_TWO),
    WITHOUT: (WITHOUT, {}, BY_TWO),
    "words": (MINI, {"stack": "prefusion", "queries": "text"}, BY_ONE),
    "compressed token": (MINI, {"stack": "prefusion", "queries": "compressed"}, BY_ONE),
    "both": (MINI, {"stack": "prefusion"}, BY_ONE),
}
SHOWN = (2, 5, 6, 7)  # frozen images whose compression is drawn
FLOOR = 0.005  # of their colours: an even spread is 1/36


def measure(subjects: dict[str, Any], folder: Path, options: argparse.Namespace) -> None:
    """Everything that is not in the folder yet."""
    for name, subject in subjects.items():
        if not (right := folder / f"right {name}.csv").exists():
            logits = answer_logits if name == LLAVA else fused_logits
            frame = evaluate(subject.model, subject.processor, options.images, logits=logits)
            frame[["image", "kind", "right"]].to_csv(right, index=False)
    measure_attention(subjects, folder)
    task = BenchmarkTask.read("shapes", limit=options.questions)
    for name, (model, cut, cases) in SWEEPS.items():
        if model in subjects:
            dropping = DropRun(subjects[model], task, {"mask": cases}, attention=False, **cut)
            with show_progress(name, len(task.samples)) as progress:
                dropping.run(folder / "sweeps" / name, progress)


def measure_attention(subjects: dict[str, Any], folder: Path) -> None:
    """The record of each model that is not in the folder yet."""
    for name, subject in subjects.items():
        if not (record := folder / f"{name}.zarr.zip").exists():
            probe.save_record(probe.measure_samples(subject, _samples(), progress=False), record)


def _samples() -> list[probe.Sample]:
    """All seven kinds of question about the first nine frozen images."""
    about = [(number, *frozen(number)) for number in range(9)]
    return [
        probe.Sample(f"{number}-{asked.kind}", draw(scene), asked.question, answer=asked.answer)
        for number, scene, questions in about
        for asked in questions
    ]


def accuracy(folder: Path) -> pd.DataFrame:
    """A row for each kind of question and model, in percent; differences to tiny-llava on the same
    questions.
    """
    frames = {name: pd.read_csv(path) for name, path in _measured(folder, "right {}.csv").items()}
    rows = []
    for kind in (ALL, *frames[LLAVA]["kind"].unique()):
        of = {
            name: frame if kind == ALL else frame[frame["kind"] == kind]
            for name, frame in frames.items()
        }
        images, base = np.asarray(of[LLAVA]["image"]), np.asarray(of[LLAVA]["right"], float)
        for name, frame in of.items():
            right = np.asarray(frame["right"], float)
            row: dict[str, Any] = {"kind": kind, "model": name, "questions": len(right)}
            row |= _columns("accuracy", bootstrap(right, images, seed=0))
            rows.append(row | _columns("difference", paired(right, base, images, seed=0)))
    return pd.DataFrame(rows)


def _measured(folder: Path, pattern: str) -> dict[str, Path]:
    """The models' files of this name that are there."""
    return {
        name: path
        for name in (LLAVA, MINI, WITHOUT)
        if (path := folder / pattern.format(name)).exists()
    }


def _columns(name: str, found: Interval) -> dict[str, float]:
    bounds = {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
    return {column: 100 * float(value) for column, value in bounds.items()}


def attention(record: xr.DataTree, model: str) -> pd.DataFrame:
    """A row for each stack, layer and type of query: means over heads and samples.

    `things` is the lift of the patches that show something: what they get of all that patches get,
    over their number.
    """
    tables = []
    for stack in [name for name in ("compressor", "prefusion", "llm") if name in record.children]:
        node = record[stack].to_dataset()
        values = node[["share", "lift"]].mean(["head", "sample"])
        for query in node["query_type"].values:
            table = {
                "model": model,
                "stack": stack,
                "layer": node["layer"].values + 1,
                "query": query,
            }
            shares = values["share"].sel(query_type=query)
            table |= {
                f"share → {key}": shares.sel(key_type=key).values for key in node["key_type"].values
            }
            table["lift of vision"] = values["lift"].sel(query_type=query, key_type="vision").values
            if node.sizes["key"] > 1:
                table["things"] = _on_things(node, query)
            tables.append(pd.DataFrame(table))
    found = pd.concat(tables, ignore_index=True)
    return found.loc[found["share → vision"].notna() & (found["query"] != "vision")]


def _on_things(node: xr.Dataset, query: str) -> np.ndarray:
    """Of each layer. A cell of the drawn images is two patches wide."""
    received, lifts = node["received"].sel(query_type=query).values, []
    for sample, values in zip(node["sample"].values, received, strict=True):
        filled = {thing.cell for thing in frozen(int(sample.split("-")[0]))[0].things}
        cells = zip(
            *(node[at].sel(sample=sample).values // 2 for at in ("key_row", "key_col")), strict=True
        )
        shown = [cell in filled for cell in cells]
        lifts.append(values[:, shown].sum(1) / values.sum(1) / np.mean(shown))
    return np.mean(lifts, axis=0)


def figures(folder: Path, sweeps: dict[str, xr.DataTree]) -> dict[str, Figure]:
    records = _records(folder)
    minis = {name: record for name, record in records.items() if name != LLAVA}
    llm = {f"the LLM of {name}": (sweeps[name], 2) for name in (LLAVA, MINI)}
    if WITHOUT in sweeps:
        llm |= {"the LLM of a LLaVA-Mini without pre-fusion": (sweeps[WITHOUT], 2)}
    cut = {
        f"{name} cut off from patches": (sweeps[name], 1)
        for name in ("words", "compressed token", "both")
    }
    return {
        **attention_figures(records),
        "dropped-llm": _side_by_side(llm),
        "dropped-prefusion": _side_by_side(cut),
        "compression": _compression(minis),
    }


def attention_figures(records: dict[str, xr.DataTree]) -> dict[str, Figure]:
    both = {name: records[name] for name in (LLAVA, MINI)}
    queries = ["instruction", "response"]
    return {
        "attention-llm": probe.plots.mass(both, value="share", query_types=queries),
        "attention-prefusion": _both_values(records[MINI]),
    }


def _records(folder: Path) -> dict[str, xr.DataTree]:
    return {
        name: probe.open_record(path) for name, path in _measured(folder, "{}.zarr.zip").items()
    }


def _both_values(record: xr.DataTree) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for axis, value in zip(axes, ("share", "lift"), strict=True):
        probe.plots.mass(
            record, "prefusion", value, query_types=["instruction", "compressed"], ax=axis
        )
    return figure


def _side_by_side(panels: dict[str, tuple[xr.DataTree, int]]) -> Figure:
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.9), layout="constrained", sharey=True
    )
    for axis, (told, (found, size)) in zip(axes, panels.items(), strict=True):
        probe.plots.dropped(found, size=size, ax=axis)
        title(axis, told)
        axis.get_legend().remove()
        axis.texts[0].remove()  # the caption, said once below
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower right",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    table = next(iter(panels.values()))[0]["mask"]
    told = f"{table.sizes['sample']} drawn questions; 95 % bands over all windows at once, images redrawn; toy models"
    figure.supxlabel(told, x=0.01, ha="left", fontsize=8, color="0.35")
    return figure


def _compression(minis: dict[str, xr.DataTree]) -> Figure:
    """Images above, and where the one token of each looks, in each model."""
    rows, columns = 1 + len(minis), len(SHOWN)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3 * columns, 2.7 * rows), layout="constrained"
    )
    for number, column in zip(SHOWN, axes.T, strict=True):
        column[0].imshow(draw(frozen(number)[0], size=240))
        column[0].set_axis_off()
        column[0].set_title(f"image {number}", fontsize=9)
        for axis, (name, record) in zip(column[1:], minis.items(), strict=True):
            probe.plots.compression(record, sample=f"{number}-caption", floor=FLOOR, ax=axis)
            axis.set_title(name, fontsize=9)
            axis.texts[0].remove()
    figure.suptitle(
        "What the one vision token is made of (toy models)", x=0.01, ha="left", fontsize=11
    )
    return figure


def tables(scores: pd.DataFrame) -> str:
    """The table of README.md."""
    others = [name for name in scores["model"].unique() if name != LLAVA]
    lines = [["", LLAVA, *(cell for name in others for cell in (name, "difference"))]]
    lines.append(["---"] * len(lines[0]))
    for kind, group in scores.groupby("kind", sort=False):
        of = group.set_index("model")
        told = [
            [_with(of.loc[name], "accuracy"), _with(of.loc[name], "difference", "+")]
            for name in others
        ]
        lines.append(
            [str(kind), _with(of.loc[LLAVA], "accuracy"), *(cell for pair in told for cell in pair)]
        )
    above = f"Percent right of {scores['questions'].iloc[0]} frozen questions; differences to {LLAVA} are paired:"
    return above + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with(row: pd.Series, name: str, sign: str = "") -> str:
    value, low, high = (
        row[column] + 1e-9 for column in (name, f"{name}_low", f"{name}_high")
    )  # halves are rounded up
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def write(folder: Path, questions: int) -> None:
    """Figures, csv and the numbers in README.md."""
    task = BenchmarkTask.read("shapes", limit=questions)
    done = {name: path for name in SWEEPS if (path := folder / "sweeps" / name).exists()}
    sweeps = {name: load_run(RunDirectory(path), task) for name, path in done.items()}
    save(figures(folder, sweeps))
    scores = accuracy(folder)
    scores.to_csv(HERE / "accuracy.csv", index=False, float_format="%.5g")
    of_sweeps = pd.concat([effects(found).assign(sweep=name) for name, found in sweeps.items()])
    of_sweeps.to_csv(HERE / "dropped.csv", index=False, float_format="%.5g")
    kept = [attention(record, name) for name, record in _records(folder).items()]
    pd.concat(kept).to_csv(HERE / "attention.csv", index=False, float_format="%.4f")
    written, readme = tables(scores), HERE / "README.md"
    before, _, after = re.split(
        r"(?<=<!-- tables -->\n)(.*)(?=\n<!-- end -->)", readme.read_text(), flags=re.DOTALL
    )
    readme.write_text(before + written + after)
    print(written)


def save(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        figure.savefig(HERE / f"{name}.png", dpi=110, bbox_inches="tight", facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, default=2000, help="frozen images, with seven questions each"
    )
    parser.add_argument("--questions", type=int, default=120, help="of the sweeps")
    parser.add_argument("--without", type=Path, help="folder of a model trained without pre-fusion")
    parser.add_argument("--draw", action="store_true", help="only figures and table")
    parser.add_argument("--attention", action="store_true", help="only the figures of attention")
    options = parser.parse_args()
    subjects = {LLAVA: probe.load(LLAVA), MINI: probe.load(MINI)}
    folder = RUNS / weights_hash(subjects[MINI].model).removeprefix("sha256:")
    if options.attention:
        folder.mkdir(parents=True, exist_ok=True)
        measure_attention(subjects, folder)
        save(attention_figures(_records(folder)))
        return
    if not options.draw:
        if options.without:
            subjects[WITHOUT] = probe.load(options.without)
        (folder / "sweeps").mkdir(parents=True, exist_ok=True)
        measure(subjects, folder, options)
    write(folder, options.questions)


if __name__ == "__main__":
    main()
