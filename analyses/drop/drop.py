"""What tiny-llava answers when vision tokens are taken away in some layers: Fig. 5 of the
LLaVA-Mini paper, and more.

    python analyses/drop/drop.py          # 1,002 drawn questions, six modes of dropping: 20 minutes
    python analyses/drop/drop.py --shard 1/2  # half of the images: one of two processes that share the run
    python analyses/drop/drop.py --draw              # only figures and tables, from the newest run

The run is in probe-out/analyses/drop and resumes. Figures, accuracy.csv and attention.csv go beside
this file, and the tables of README.md are written anew. A run with other weights is another run:
the folder is named by their hash.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

import probe
from probe.cli.benchmark_run import show_progress
from probe.evaluation.drop_effects import (
    ALL,
    ATTENTION,
    effects,
    from_cases,
    tables_of,
    until_cases,
    window_cases,
)
from probe.evaluation.drop_run import DropRun
from probe.evaluation.sample_run import load_run
from probe.evaluation.task import BenchmarkTask
from probe.records.run_directory import RunDirectory
from probe.subject.weights_hash import weights_hash

HERE = Path(__file__).parent
RUNS = Path("probe-out/analyses/drop")
ALL_QUESTIONS = 1002  # on 167 images
WINDOW = 2  # of 8 layers, as the paper's 4 of 32
MODES = ("mask_frozen", "remove", "remove_for_good", "zero", "swap")


def measured(task: BenchmarkTask, shard: tuple[int, int]) -> RunDirectory:
    """The run of the shipped weights, with this shard of the images done."""
    subject = probe.load("tiny-llava")
    everything = [probe.windows(WINDOW), probe.windows(1), probe.from_layer(), probe.until_layer()]
    dropping = DropRun(
        subject, task, {"mask": everything} | dict.fromkeys(MODES, probe.windows(WINDOW))
    )
    folder = RUNS / weights_hash(subject.model).removeprefix("sha256:")
    number, count = shard
    images = sorted({sample.meta["image"] for sample in task.samples})[number - 1 :: count]
    mine = [sample for sample in task.samples if sample.meta["image"] in images]
    todo = RunDirectory.open(folder, dropping.fingerprint()).todo(mine)
    print("\n".join(dropping.estimate(todo) if todo else [f"all done in {folder}"]), flush=True)
    with show_progress("drop", len(todo)) as progress:
        return dropping.run(folder, progress, samples=mine, worker=str(number))


def figures(found: xr.DataTree) -> dict[str, Any]:
    return {
        "dropped": probe.plots.dropped(found, "mask", WINDOW).figure,
        "dropped-by-layer": probe.plots.dropped(found, "mask", 1).figure,
        "readings": probe.plots.readings(found, WINDOW).figure,
        "readings-kl": probe.plots.readings(found, WINDOW, "kl").figure,
        "depth": probe.plots.depth(found, "mask"),
        "swaps": probe.plots.swaps(found, WINDOW).figure,
    }


def attention(found: xr.DataTree) -> pd.DataFrame:
    """A row a layer: share and lift of vision, of the answer's and the instruction's tokens; mean
    over samples.
    """
    node = found[ATTENTION].to_dataset()[["share", "lift"]].mean("sample")
    table = {"layer": node["layer"].values + 1}
    for query in ("response", "instruction"):
        for value in ("share", "lift"):
            table[f"{value} {query} → vision"] = node[value].sel(query_type=query).values
    return pd.DataFrame(table).round(4)


def tables(found: xr.DataTree, accuracy: pd.DataFrame) -> str:
    """The tables of README.md."""
    of_all = accuracy[accuracy["kind"] == ALL].set_index(["mode", "case"])
    first, mask = of_all.iloc[0], tables_of(found)["mask"]
    windows = window_cases(mask, WINDOW)
    told = (
        f"{first['questions']} questions on {first['images']} images; weights {found.attrs['weights']}. Accuracy "
        "in percent, 95 % intervals from a bootstrap over images; differences to the untouched model are paired."
    )
    baselines = [
        [case, _with(of_all.loc["mask", case], "accuracy")] for case in mask["case"].values[:3]
    ]
    by_mode = [
        [mode, *(_with(of_all.loc[mode, case], "accuracy") for case in windows)]
        for mode in tables_of(found)
    ]
    given = 100 * of_all.loc["swap"]["donor_answer_given"]
    parts = [
        told,
        _markdown(["", "accuracy"], baselines),
        "One layer without vision (`mask`), beside the attention that the answer's tokens give to vision there:",
        _layer_table(found, of_all.loc["mask"]),
        "Each mode of dropping, window by window:",
        _markdown(["", *windows], by_mode),
        f"`swap`: how often the answer is the one given about the other image ({given['untouched']:.1f} untouched):",
        _markdown(
            ["", *windows], [["other image's answer", *(f"{given[case]:.1f}" for case in windows)]]
        ),
        "Dropped from a layer to the last one, by kind of question:",
        _depth_table(
            accuracy, {f"from {layer + 1}": case for layer, case in from_cases(mask).items()}
        ),
        "Dropped from the first layer to a layer:",
        _depth_table(
            accuracy, {f"to {layer + 1}": case for layer, case in until_cases(mask).items()}
        ),
    ]
    return "\n\n".join(parts)


def _layer_table(found: xr.DataTree, of_all: pd.DataFrame) -> str:
    seen, rows = attention(found).set_index("layer"), []
    for layer, case in enumerate(window_cases(tables_of(found)["mask"], 1), 1):
        shares = [
            f"{seen.loc[layer, f'{value} response → vision']:.2f}" for value in ("share", "lift")
        ]
        rows.append(
            [case, *shares, _with(of_all.loc[case], "difference"), f"{of_all.loc[case, 'kl']:.3f}"]
        )
    return _markdown(
        ["layer", "share of vision", "lift", "difference in accuracy", "KL (nat)"], rows
    )


def _depth_table(accuracy: pd.DataFrame, cases: dict[str, str]) -> str:
    grid = accuracy[accuracy["mode"] == "mask"].pivot(
        index="kind", columns="case", values="accuracy"
    )
    kinds = [ALL, *(kind for kind in grid.index if kind != ALL)]
    rows = [
        [kind, *(f"{grid.loc[kind, case]:.1f}" for case in ("untouched", *cases.values()))]
        for kind in kinds
    ]
    return _markdown(["", "untouched", *cases], rows)


def _with(row: pd.Series, name: str) -> str:
    return f"{row[name]:.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]"


def _markdown(headings: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(map(str, row)) + " |"
        for row in [headings, ["---"] * len(headings), *rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--questions", type=int, default=ALL_QUESTIONS, help="with fewer, only figures are made"
    )
    parser.add_argument("--draw", action="store_true", help="only draw the newest run")
    parser.add_argument("--shard", default="1/1")
    options = parser.parse_args()
    task = BenchmarkTask.read("shapes", limit=options.questions)
    number, count = map(int, options.shard.split("/"))
    newest = max(RUNS.glob("*"), key=lambda folder: folder.stat().st_mtime, default=RUNS)
    run = RunDirectory(newest) if options.draw else measured(task, (number, count))
    if run.todo(task.with_images):
        return
    found = load_run(run, task)
    for name, figure in figures(found).items():
        figure.savefig(HERE / f"{name}.png", dpi=120, bbox_inches="tight", facecolor="white")
    if options.questions == ALL_QUESTIONS:
        write(found)


def write(found: xr.DataTree) -> None:
    """Tables, and the numbers in README.md."""
    accuracy = effects(found)
    accuracy.to_csv(HERE / "accuracy.csv", index=False, float_format="%.5g")
    attention(found).to_csv(HERE / "attention.csv", index=False)
    written = tables(found, accuracy)
    readme = HERE / "README.md"
    before, _, after = re.split(
        r"(?<=<!-- tables -->\n)(.*)(?=\n<!-- end -->)", readme.read_text(), flags=re.DOTALL
    )
    readme.write_text(before + written + after)
    print(written)


if __name__ == "__main__":
    main()
