"""Does attention predict being right? For each layer and head, how a sample's attention relates to
whether its answer is right, names what is not there, or is given with confidence.

    found = reliability("probe-out/attention")       # a run of `probe attention --benchmark`
    found["auroc"].sel(outcome="correct", measure="mass")       # (layer, head)
    found["baseline"]                                # of the answer's own log-probability
    reliability_table(found)                         # a row a head, the most significant first

    auroc      P(the measure is higher where the event happened), ties count half: `auroc.py`
    gain       AUROC, in the direction that it has, less the AUROC of the log-probability: above 0,
               attention tells more than the model's own confidence
    q          false discovery rate among all tests of an outcome (heads, and means over heads)

What the outcomes and their baselines are: `reliability_outcomes.py`. Intervals: 95 %, bootstrap
over images, differences paired. A head's direction is taken from the same data, so a gain is
favourable to heads; only its lower bound above 0 says something.

The claim that this is to test: on 3,090 questions, concentration and entropy of attention
correlated with correctness at about zero (arXiv 2605.08200).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float, Int
from tqdm.auto import tqdm

from probe.errors import ProbeError, one_of
from probe.records.auroc import Auroc, auroc_p
from probe.records.bootstrap import bootstrap_statistic
from probe.records.frames import node
from probe.records.io import open_record
from probe.records.reliability_outcomes import (
    OUTCOMES,
    Answers,
    Outcome,
    answers_of,
    outcomes_of,
)
from probe.records.run_directory import RunDirectory
from probe.records.schema import Variable, dataset
from probe.records.significance import RATE, false_discovery

MEASURES = ("mass", "lift", "head_entropy", "contribution")  # those that a run may hold
DRAWS = 500
# Whose attention it is, by default: the first that was measured
QUERIES = {
    "correct": ("response", "last", "instruction"),
    "hallucination": ("last", "instruction"),
    "confident": ("response", "last", "instruction"),
}
CELLS = 200_000  # samples x heads whose intervals are computed at once

_HEAD = "outcome measure layer head"
_LAYER = "outcome measure layer"
_EACH = {
    "auroc": ("1", "area under the ROC curve"),
    "auroc_low": ("1", "lower bound of the area, 95 %"),
    "auroc_high": ("1", "upper bound of the area, 95 %"),
    "gain": ("1", "area less that of the answer's log-probability"),
    "gain_low": ("1", "lower bound of the gain, 95 %"),
    "gain_high": ("1", "upper bound of the gain, 95 %"),
    "p": ("1", "p of an area of 1/2, two-sided"),
    "q": ("1", "false discovery rate"),
}
SCHEMA = {
    **{name: Variable(_HEAD, *meaning) for name, meaning in _EACH.items()},
    **{
        f"layer_{name}": Variable(_LAYER, units, f"{text}, heads averaged first")
        for name, (units, text) in _EACH.items()
    },
    "baseline": Variable("outcome", "1", "area of the answer's log-probability"),
    "baseline_low": Variable("outcome", "1", "lower bound of that area, 95 %"),
    "baseline_high": Variable("outcome", "1", "upper bound of that area, 95 %"),
    "queries": Variable("outcome", "text", "whose attention it is", dtype="object"),
    "samples": Variable("outcome", "1", "samples that the outcome is about", dtype="int64"),
    "events": Variable("outcome", "1", "samples where it happened", dtype="int64"),
    "images": Variable("outcome", "1", "images that they show", dtype="int64"),
}


def reliability(
    run: Any,
    *,
    stack: str = "llm",
    query_type: str | None = None,
    key_type: str = "vision",
    measures: Sequence[str] | None = None,
    outcomes: Sequence[str] | None = None,
    confidence: str = "sum",
    seed: int = 0,
    draws: int = DRAWS,
    progress: bool = True,
) -> xr.Dataset:
    """AUROC of each measure of each head, of attention to vision (`key_type`), for each outcome.

    Args:
        run: a run of `probe attention --benchmark`: its folder, its record, or the record's file.
        query_type: whose attention; by default the response's, but for hallucination that of the
            prompt's rows after which it is said ("last" with fine types, else "instruction"):
            rows of the response know the word that makes it one.
        measures: of `MEASURES`; all that it holds by default (contribution with `--contribution`).
        outcomes: of correct, hallucination, confident; by default those of which there is enough;
            the attr `left_out` says why others are not there.
        confidence: what log p(answer) is: "sum" over its tokens, their "mean", or the "first".
        draws: of the bootstrap.

    Variables: `SCHEMA`. Heads without a value are NaN. Raises ProbeError for a run without scores
    or log-probabilities, for fewer than 10 right or 10 wrong answers, and for a single image.
    """
    record = _opened(run)
    measured = node(record, stack)
    names = _measures(measured, measures)
    every = list(OUTCOMES if outcomes is None else outcomes)
    queries = {name: _query_of(name, query_type, measured) for name in every}
    values = {query: _values(measured, names, query, key_type) for query in {*queries.values()}}
    is_known = [np.isfinite(each).reshape(len(each), -1).any(1) for each in values.values()]
    has_values = np.all(is_known, axis=0)
    answers = _among(answers_of(record, confidence), has_values)
    chosen, left_out = outcomes_of(answers, outcomes)
    _require_images(answers)
    options: dict[str, Any] = {"seed": seed, "draws": draws, "progress": progress}
    parts = [
        _of_outcome(outcome, answers, values[queries[outcome.name]][has_values], **options)
        for outcome in chosen
    ]
    arrays = {name: [part[name] for part in parts] for name in parts[0]}
    arrays["queries"] = [queries[outcome.name] for outcome in chosen]
    labels = {name: measured[name].values for name in ("layer", "head")}
    coords = {"outcome": [outcome.name for outcome in chosen], "measure": names, **labels}
    facts = {str(name): value for name, value in record.attrs.items()}
    attrs = facts | {
        "kind": "reliability",
        "stack": stack,
        "key_type": key_type,
        "confidence": confidence,
        "left_out": left_out,
        "seed": seed,
        "draws": draws,
    }
    return dataset("reliability", arrays, SCHEMA, coords, attrs)


def _opened(run: Any) -> xr.DataTree:
    if isinstance(run, str | Path):
        folder = Path(run)
        is_run = (folder / "run.json").is_file()
        if folder.is_dir() and not is_run:
            raise ProbeError(
                "reliability",
                expected="the folder of a run over a benchmark",
                got=f"{str(folder)!r}, which holds none",
                fix="make one: probe attention --benchmark NAME --out FOLDER",
            )
        run = RunDirectory(folder).merged() if is_run else open_record(run)
    if not isinstance(run, xr.DataTree) or not run.children:
        got = f"a {type(run).__name__}"
        raise ProbeError("reliability", expected="a run of probe attention", got=got)
    return run


def _measures(measured: xr.Dataset, asked: Sequence[str] | None) -> list[str]:
    held = [name for name in MEASURES if name in measured]
    for name in asked or ():
        one_of("reliability", "measures of", name, held)
    return list(asked or held)


def _query_of(outcome: str, asked: str | None, measured: xr.Dataset) -> str:
    """The query type for an outcome: the one asked for, else the first of `QUERIES` there is."""
    known = measured["query_type"].values.tolist()
    if asked is not None:
        one_of("reliability", "a query_type of", asked, known)
        return asked
    one_of("reliability", "outcomes of", outcome, QUERIES)
    found = [name for name in QUERIES[outcome] if name in known]
    return found[0] if found else known[0]


def _values(
    measured: xr.Dataset, names: Sequence[str], query_type: str, key_type: str
) -> Float[np.ndarray, "sample measure layer head"]:
    one_of("reliability", "a key_type of", key_type, measured["key_type"].values.tolist())
    places = {"query_type": query_type, "key_type": key_type}
    arrays = [measured[name].sel(places).transpose("sample", "layer", "head") for name in names]
    return np.stack([array.values.astype(float) for array in arrays], 1)


def _among(answers: Answers, chosen: Bool[np.ndarray, " sample"]) -> Answers:
    return Answers(*(each[chosen] for each in vars(answers).values()))


def _require_images(answers: Answers) -> None:
    count = len(np.unique(answers.images))
    if count < 2:
        expected = "answers about at least 2 images, over which intervals are drawn"
        raise ProbeError("reliability", expected=expected, got=f"{count}")


def _of_outcome(
    outcome: Outcome,
    answers: Answers,
    values: Float[np.ndarray, "sample measure layer head"],
    *,
    seed: int,
    draws: int,
    progress: bool,
) -> dict[str, Any]:
    """The variables of `SCHEMA` for one outcome."""
    about = outcome.about
    event = outcome.event[about]
    images = answers.images[about]
    with_mean = _with_mean_over_heads(values[about])
    baseline = Auroc.of(outcome.baseline_sign * answers.logprob[about][:, None], event)
    columns = []
    bar = tqdm(total=with_mean[0].size, desc=outcome.name, unit="head", disable=not progress)
    with bar:
        for block in _blocks(with_mean.reshape(len(with_mean), -1)):
            columns.append(_areas(block, event, images, baseline, seed=seed, draws=draws))
            bar.update(block.shape[1])
    found = {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
    found["q"] = false_discovery(found["p"])
    of_baseline = bootstrap_statistic(baseline, images, seed=seed, draws=draws)
    areas = of_baseline.columns("baseline")
    if not outcome.baseline_sign:
        areas = {name: np.full_like(each, np.nan) for name, each in areas.items()}
        for name in ("gain", "gain_low", "gain_high"):
            found[name] = np.full_like(found[name], np.nan)
    shaped = {name: each.reshape(with_mean.shape[1:]) for name, each in found.items()}
    return {
        **{name: each[..., :-1] for name, each in shaped.items()},
        **{f"layer_{name}": each[..., -1] for name, each in shaped.items()},
        **{name: float(each[0]) for name, each in areas.items()},
        "samples": int(about.sum()),
        "events": int(event.sum()),
        "images": len(np.unique(images)),
    }


def _with_mean_over_heads(
    values: Float[np.ndarray, "sample measure layer head"],
) -> Float[np.ndarray, "sample measure layer one_more"]:
    known = ~np.isnan(values)
    counts = known.sum(-1)
    sums = np.where(known, values, 0.0).sum(-1)
    nothing = np.full(sums.shape, np.nan)
    mean = np.divide(sums, counts, out=nothing, where=counts > 0)
    return np.concatenate([values, mean[..., None]], -1)


def _areas(
    cases: Float[np.ndarray, "sample case"],
    event: Bool[np.ndarray, " sample"],
    images: Int[np.ndarray, " sample"],
    baseline: Auroc,
    *,
    seed: int,
    draws: int,
) -> dict[str, Float[np.ndarray, " case"]]:
    """`_EACH` of each case but q. All blocks have the same draws."""
    area = Auroc.of(cases, event)
    estimate = area(np.ones(len(event), dtype=np.int64))
    direction = np.where(estimate < 0.5, -1, 1)

    def area_and_gain(times: Int[np.ndarray, " sample"]) -> Float[np.ndarray, "two case"]:
        found = area(times)
        in_its_direction = 0.5 + direction * (found - 0.5)
        return np.stack([found, in_its_direction - baseline(times)])

    interval = bootstrap_statistic(area_and_gain, images, seed=seed, draws=draws)
    both = interval.columns("")
    columns = {f"auroc{end}": each[0] for end, each in both.items()}
    columns |= {f"gain{end}": each[1] for end, each in both.items()}
    return columns | {"p": auroc_p(cases, event, images)}


def _blocks(cases: Float[np.ndarray, "sample case"]) -> Iterator[np.ndarray]:
    """Some cases at a time."""
    step = max(1, CELLS // len(cases))
    for start in range(0, cases.shape[1], step):
        yield cases[:, start : start + step]


def reliability_table(found: xr.Dataset, rate: float = RATE) -> pd.DataFrame:
    """A row for each outcome, measure, layer (from 0) and head ("all": their mean), the smallest q
    and then the strongest first; `significant`: q at most `rate`.

    Raises ProbeError for what is not of `reliability`.
    """
    if not isinstance(found, xr.Dataset) or found.attrs.get("kind") != "reliability":
        expected = "what probe.reliability returned"
        raise ProbeError("reliability_table", expected=expected, got=type(found).__name__)
    heads = found[list(_EACH)].to_dataframe().reset_index()
    means = found[[f"layer_{name}" for name in _EACH]].to_dataframe().reset_index()
    means = means.rename(columns={f"layer_{name}": name for name in _EACH}).assign(head="all")
    table = pd.concat([heads.astype({"head": object}), means], ignore_index=True)
    table["significant"] = table["q"] <= rate
    outcomes = found["outcome"].values.tolist()
    table["place"] = [outcomes.index(name) for name in table["outcome"]]
    table["strength"] = (table["auroc"] - 0.5).abs()
    ascending = [True, True, False]
    table = table.sort_values(["place", "q", "strength"], ascending=ascending, kind="stable")
    columns = ["outcome", "measure", "layer", "head", *_EACH, "significant"]
    return table.reindex(columns=columns).reset_index(drop=True)
