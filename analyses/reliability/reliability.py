"""Does attention predict being right? On the shipped models, beside their own confidence.

    python analyses/reliability/reliability.py                    # 600 questions a model: some minutes
    python analyses/reliability/reliability.py --questions 120
    python analyses/reliability/reliability.py --draw             # again, from what was measured

What is measured is a run for each model in probe-out/analyses/reliability (it resumes; another number
of questions goes on with it). Writes numbers.csv, figures and the tables of README.md beside this
file. The claim that stands beside it: arXiv 2605.08200, on 3,090 questions to LLaVA-like models,
correlations of attention's concentration and entropy with correctness of 0.001 and -0.012.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import probe
from probe.evaluation.attention_run import AttentionRun
from probe.evaluation.task import BenchmarkTask
from probe.records.bootstrap import Interval, bootstrap_statistic
from probe.records.concat import select
from probe.records.reliability import reliability_table
from probe.records.run_directory import RunDirectory
from probe.records.sample_images import images

HERE = Path(__file__).parent
MEASURED = Path("probe-out/analyses/reliability")
# Model, and whose layers: response → vision, of pre-fusion instruction → vision
SEEN = (
    ("tiny-llava", "llm"),
    ("tiny-llava-mini", "llm"),
    ("tiny-llava-mini", "prefusion"),
)
KINDS = ("exist", "where")  # of question: those that are often answered wrong
OUTCOMES = ("correct", "hallucination", "confident")
QUESTIONS = 600


def measure(model: str, questions: int) -> None:
    """The run of one model, finished."""
    task = BenchmarkTask.read("shapes", limit=questions)
    AttentionRun(probe.load(model), task, contribution=True).run(MEASURED / model)


def correlation(record: xr.DataTree, stack: str, query: str, measure: str) -> Interval:
    """Pearson's correlation of a measure, averaged over layers and heads, with being right."""
    places = {"query_type": query, "key_type": "vision"}
    values = record[stack].to_dataset()[measure].sel(places).mean(["layer", "head"]).values
    right = (record.to_dataset()["correct"].values >= 0.5).astype(float)
    known = ~np.isnan(values)
    values, right = values[known].astype(float), right[known]

    def pearson(times: np.ndarray) -> float:
        share = times / times.sum()
        of_values, of_right = values - share @ values, right - share @ right
        spread = np.sqrt((share @ of_values**2) * (share @ of_right**2))
        return float(share @ (of_values * of_right) / spread) if spread else np.nan

    return bootstrap_statistic(pearson, images(record)[known], seed=0)


def in_brackets(estimate: float, low: float, high: float) -> str:
    if np.isnan(estimate):
        return "-"
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"


def of_kind(record: xr.DataTree, kind: str) -> xr.DataTree:
    """The questions of one kind."""
    kinds = record.to_dataset()["kind"].values.astype(str)
    chosen = select(record, np.flatnonzero(kinds == kind).tolist())
    assert isinstance(chosen, xr.DataTree)
    return chosen


def row_of(found: xr.Dataset, outcome: str, about: str) -> list[str]:
    """One outcome of one dataset: counts, baseline, the head that tells most."""
    one: Any = found.sel(outcome=outcome)
    whole = reliability_table(found)
    table: Any = whole[whole["outcome"] == outcome]
    heads: Any = table[table["head"] != "all"]
    best: Any = heads.iloc[(heads["auroc"] - 0.5).abs().fillna(0).to_numpy().argmax()]
    above = int((heads["gain_low"] > 0).sum())
    baseline = [float(one[name]) for name in ("baseline", "baseline_low", "baseline_high")]
    tested = int(table["p"].notna().sum())
    name = f"{best['measure']}, layer {int(best['layer']) + 1}, head {int(best['head']) + 1}"
    return [
        f"{outcome}{about}",
        one["queries"].item(),
        f"{int(one['events'])} of {int(one['samples'])}",
        in_brackets(*baseline),
        f"{int(table['significant'].sum())} of {tested}",
        name,
        in_brackets(best["auroc"], best["auroc_low"], best["auroc_high"]),
        "-" if outcome == "confident" else str(above),
    ]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw() -> None:
    """Figures, numbers.csv and the tables of README.md."""
    parts, tables = [], []
    correlations = []
    for model, stack in SEEN:
        record = RunDirectory(MEASURED / model).load()
        assert isinstance(record, xr.DataTree)
        found = probe.reliability(record, stack=stack, progress=False)
        name = f"{model}, {stack}"
        parts.append(reliability_table(found).assign(model=model, stack=stack, kind="all"))
        held = [outcome for outcome in OUTCOMES if outcome in found["outcome"].values]
        header = ["outcome", "attention of", "events", "log p(answer)", "significant"]
        header += ["farthest from 0.5", "its AUROC", "heads above log p"]
        facts = f"{record.sizes['sample']} questions on {int(found['images'][0])} images"
        left_out = f" Left out: {found.attrs['left_out']}." if found.attrs["left_out"] else ""
        title = f"**{name}** ({found.attrs['weights']}; {facts}).{left_out}"
        rows = [row_of(found, outcome, "") for outcome in held]
        for kind in KINDS:
            within = of_kind(record, kind)
            inside = probe.reliability(within, stack=stack, outcomes=["correct"], progress=False)
            rows.insert(1, row_of(inside, "correct", f", {kind} only"))
            parts.append(reliability_table(inside).assign(model=model, stack=stack, kind=kind))
        tables += [title, markdown(header, rows)]
        figure = probe.plots.reliability(found)
        file = f"{model}-{stack}.png"
        figure.savefig(HERE / file, dpi=80, facecolor="white", bbox_inches="tight")
        for measure in ("mass", "head_entropy"):
            query = found["queries"].sel(outcome="correct").item()
            interval = correlation(record, stack, query, measure)
            bounds = float(interval.estimate), float(interval.low), float(interval.high)
            correlations.append([f"{name}, {query} → vision", measure, in_brackets(*bounds)])
    header = ["attention", "measure, mean over layers and heads", "correlation with being right"]
    tables += ["Correlations of means (95 %):", markdown(header, correlations)]
    columns = ["model", "stack", "kind"]
    numbers = pd.concat(parts)
    first = numbers[columns]
    rest = numbers.drop(columns=columns)
    pd.concat([first, rest], axis=1).to_csv(HERE / "numbers.csv", index=False, float_format="%.4g")
    readme = HERE / "README.md"
    words = readme.read_text().split("<!-- tables -->")[0] if readme.exists() else ""
    readme.write_text(words + "<!-- tables -->\n" + "\n\n".join(tables) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--draw", action="store_true", help="only from what was measured")
    options = parser.parse_args()
    if not options.draw:
        for model in dict.fromkeys(model for model, _ in SEEN):
            measure(model, options.questions)
    draw()


if __name__ == "__main__":
    main()
