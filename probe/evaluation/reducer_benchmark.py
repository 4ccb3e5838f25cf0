"""Reducers beside the controls that cost no thought: random tokens, and a smaller image. Needs no
torch.

    table = reducer_benchmark(answers, costs)      # of a `Comparison`, a row a method and budget

Methods of one family and budget (the seeds of random selection) are one row: their mean, and how
far they spread. The split by difficulty is that of VTC-Bench: the questions that the down-sampled
image of the same budget gets wrong, and the rest. Down-sampling is wrong on the former by
definition; what any other method gets right there, the smaller image did not show.

Source: arXiv 2510.07143 (VTC-Bench); arXiv 2511.02650 (random selection as a floor).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from probe.errors import ProbeError
from probe.evaluation.drop_effects import values_of
from probe.evaluation.headline import Headline
from probe.records.bootstrap import Interval, bootstrap

RANDOM, SMALLER = "random", "down-sampling"  # families of the controls
HALF = 0.5  # a score below it is a wrong answer


@dataclass(frozen=True)
class Row:
    """The cases of one family and budget."""

    method: str
    family: str
    budget: int
    cases: tuple[int, ...]


def reducer_benchmark(
    answers: xr.Dataset, costs: xr.Dataset | None = None, *, seed: int = 0
) -> pd.DataFrame:
    """A row a method and budget. Intervals are 95 %, images redrawn; differences are paired.

    | column | what |
    |---|---|
    | the benchmark's official number | and `_low`, `_high`, as all below |
    | `worst_over_mean`, `best_over_mean` | of the cases of the row (seeds), to their mean |
    | `difference` | to the first method |
    | `over_random`, `over_smaller` | to the controls of the same budget |
    | `hard`, `rest` | mean score (percent) where the smaller image is wrong, and right |
    | `hard_questions` | the number of the former |
    | `speed_up` | time to the first token: of the first method, as a multiple of this one's |
    | `counted` | the same of the counted operations |
    | `peak` | bytes in use until the first token |
    | `verdict` | what the intervals do not show: better than a control, faster |

    Raises ProbeError for answers that do not say the budget of their methods.
    """
    if not isinstance(answers, xr.Dataset) or "budget" not in answers.coords:
        expected = "the answers of a comparison, with the budget of each method"
        raise ProbeError("reducer_benchmark", expected=expected, got=type(answers).__name__)
    headline = Headline(answers)
    rows = rows_of(answers)
    groups = [row.cases for row in rows]
    numbers = np.array(headline(np.ones(answers.sizes["sample"], dtype=np.int64)), dtype=float)
    of_cases = [numbers[list(cases)] for cases in groups]
    tokens = answers["vision_tokens"].mean(["sample", "layer"]).values
    columns: dict[str, Any] = {
        "method": [row.method for row in rows],
        "family": [row.family for row in rows],
        "budget": [row.budget for row in rows],
        "cases": [len(cases) for cases in groups],
        "vision_tokens": [tokens[list(cases)].mean() for cases in groups],
        **headline.contrasts([(cases, ()) for cases in groups], seed).columns(headline.name),
        "worst_over_mean": [own.min() - own.mean() for own in of_cases],
        "best_over_mean": [own.max() - own.mean() for own in of_cases],
        **headline.contrasts([(cases, (0,)) for cases in groups], seed).columns("difference"),
        **_over_control(headline, rows, RANDOM, seed).columns("over_random"),
        **_over_control(headline, rows, SMALLER, seed).columns("over_smaller"),
        **_by_difficulty(answers, rows, seed),
    }
    table = pd.DataFrame(columns)
    if costs is not None:
        table = table.assign(**_speed(costs, answers["case"].values, groups))
    return table.assign(verdict=[_verdict(row) for row in table.to_dict("records")])


def rows_of(answers: xr.Dataset) -> list[Row]:
    """The methods, those of one family and budget together; in the order of the first of each."""
    found: dict[tuple[str, int], list[int]] = {}
    families = [str(family) for family in answers["family"].values]
    budgets = [int(budget) for budget in answers["budget"].values]
    names = [str(name) for name in answers["case"].values]
    for case, (family, budget) in enumerate(zip(families, budgets, strict=True)):
        key = (family, budget) if budget else (names[case], 0)
        found.setdefault(key, []).append(case)
    rows = []
    for cases in found.values():
        first = cases[0]
        name = names[first]
        if len(cases) > 1:
            name = f"{name.partition(', seed')[0]}, mean of {len(cases)}"
        rows.append(Row(name, families[first], budgets[first], tuple(cases)))
    return rows


def _control(rows: Sequence[Row], row: Row, family: str) -> tuple[int, ...]:
    """The cases of a control with the row's budget; none for the control itself."""
    if not row.budget or row.family == family:
        return ()
    same = [other.cases for other in rows if (other.family, other.budget) == (family, row.budget)]
    return same[0] if same else ()


def _over_control(headline: Headline, rows: Sequence[Row], family: str, seed: int) -> Interval:
    """The paired difference of each row to a control of its budget; NaN where there is none."""
    controls = [_control(rows, row, family) for row in rows]
    estimate = np.full(len(rows), np.nan)
    low = np.full(len(rows), np.nan)
    high = np.full(len(rows), np.nan)
    with_control = [at for at, cases in enumerate(controls) if cases]
    if with_control:
        pairs = [(rows[at].cases, controls[at]) for at in with_control]
        found = headline.contrasts(pairs, seed)
        estimate[with_control] = found.estimate
        low[with_control] = found.low
        high[with_control] = found.high
    return Interval(estimate, low, high, 0.95)


def _by_difficulty(answers: xr.Dataset, rows: Sequence[Row], seed: int) -> dict[str, np.ndarray]:
    """Mean score on the questions that the smaller image of the row's budget gets wrong, and on the
    others, in percent.
    """
    scores = values_of(answers)
    images = answers["image"].values
    smaller = {row.budget: list(row.cases) for row in rows if row.family == SMALLER}
    own = np.stack([scores[:, list(row.cases)].mean(1) for row in rows], 1)
    wrong = np.full(own.shape, np.nan)
    for column, row in enumerate(rows):
        if row.budget in smaller:
            of_smaller = scores[:, smaller[row.budget]].mean(1)
            wrong[:, column] = of_smaller < HALF
    columns: dict[str, np.ndarray] = {}
    for name, among in (("hard", wrong == 1), ("rest", wrong == 0)):
        percents = np.where(among, 100 * own, np.nan)
        columns |= bootstrap(percents, images, seed=seed).columns(name)
    columns["hard_questions"] = np.nansum(wrong, axis=0).astype(int)
    return columns


def _speed(costs: xr.Dataset, cases: np.ndarray, groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Counted and, where the clock ran, measured speed-ups over the first method."""
    operations = costs["flops"].sum(["component", "operation"]).sel(case=cases).values
    counted = [operations[0] / operations[list(own)].mean() for own in groups]
    if "latency" not in costs:
        return {"counted": counted}
    seconds = costs["latency"].sel(case=cases).values
    means = [seconds[list(own)].mean(0) for own in groups]
    ratios = [np.log(seconds[0] / mean) for mean in means]
    repeats = np.arange(seconds.shape[1])
    measured = bootstrap(np.stack(ratios, 1), repeats, seed=0)
    peak = costs["memory"].sel(case=cases, moment="peak").values
    return {
        "speed_up": np.exp(measured.estimate),
        "speed_up_low": np.exp(measured.low),
        "speed_up_high": np.exp(measured.high),
        "counted": counted,
        "peak": [peak[list(own)].max() for own in groups],
    }


def _verdict(row: dict[str, Any]) -> str:
    """What the intervals do not show.

    >>> bounds = {"over_random_low": -1.0, "over_smaller_low": 2.0, "speed_up_low": 0.9}
    >>> _verdict({"budget": 64} | bounds)
    'not better than random; not faster'
    """
    if not row["budget"]:
        return ""
    bounds = (
        ("over_random_low", 0, "not better than random"),
        ("over_smaller_low", 0, "not better than down-sampling"),
        ("speed_up_low", 1, "not faster"),
    )
    open_or_denied = [words for name, bound, words in bounds if row.get(name, np.nan) <= bound]
    return "; ".join(open_or_denied)
