"""What a patch sweep holds, and the share of the difference that each patch brings back.

    table = recovered(sweep)                  # a data frame: a row for each layer and group
    recovered_share(sweep, "denoise")         # Interval of (layer, group)

With L the log-probability of the gold answer, over all pairs:

    denoise   Σ (L patched - L corrupted) ÷ Σ (L clean - L corrupted): 1 brings the answer back
    noise     Σ (L clean - L patched) ÷ Σ (L clean - L corrupted): 1 takes all of it away

A ratio of sums, so that pairs whose corruption changes little do not decide. Intervals: 95 %,
bootstrap over images.
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int

from probe.errors import ProbeError
from probe.records.bootstrap import Interval, bootstrap_statistic, paired
from probe.records.rank_agreement import spearman
from probe.records.schema import Variable

DIRECTIONS = ("denoise", "noise")

_CASES = "sample direction layer group"
SCHEMA = {
    "patched": Variable(_CASES, "nat", "log-probability of the gold answer under the patch"),
    "correct": Variable(_CASES, "1", "greedy decoding begins with the gold answer"),
    "clean": Variable("sample", "nat", "log-probability of the gold answer, clean"),
    "corrupted": Variable("sample", "nat", "log-probability of the gold answer, corrupted"),
    "clean_correct": Variable("sample", "1", "greedy decoding begins with the gold answer, clean"),
    "corrupted_correct": Variable(
        "sample", "1", "greedy decoding begins with the gold answer, corrupted"
    ),
    "positions": Variable("sample group", "1", "positions in the group", dtype="int64"),
    "image": Variable("sample", "text", "the image that was asked about", dtype="object"),
}


def recovered_share(sweep: xr.Dataset, direction: str = "denoise", *, seed: int = 0) -> Interval:
    """The share of the difference, (layer, group), with its interval; NaN where clean and corrupted
    runs do not differ. Raises ProbeError for a dataset that is none of a patch sweep, and for a
    direction that it has not.
    """
    moved, whole = _differences(sweep, direction)

    def share(times: Int[np.ndarray, "sample"]) -> Float[np.ndarray, "layer group"]:
        total = float((times * whole).sum())
        part = np.tensordot(times.astype(float), moved, axes=1)
        return part / total if total else np.full_like(part, np.nan)

    return bootstrap_statistic(share, sweep["image"].values.astype(str), seed=seed)


def _differences(
    sweep: xr.Dataset, direction: str
) -> tuple[Float[np.ndarray, "sample layer group"], Float[np.ndarray, "sample"]]:
    """What each patch moves, and the whole difference between the two runs."""
    known = [] if "patched" not in sweep else list(map(str, sweep["direction"].values))
    if direction not in known:
        got = f"one with {', '.join(known) or 'no patches'}"
        expected = f"a patch sweep in the direction {direction!r}"
        raise ProbeError("recovered", expected=expected, got=got)
    clean = sweep["clean"].values.astype(float)
    corrupted = sweep["corrupted"].values.astype(float)
    values = sweep["patched"].sel(direction=direction).transpose("sample", "layer", "group").values
    if direction == "denoise":
        return values - corrupted[:, None, None], clean - corrupted
    return clean[:, None, None] - values, clean - corrupted


def recovered(sweep: xr.Dataset, *, seed: int = 0) -> pd.DataFrame:
    """A row for each direction, layer (from 0) and group: recovered share, change of the gold
    answer's log-probability (nats) and of accuracy (percent), each with its bounds.
    """
    frames = []
    images = sweep["image"].values.astype(str)
    for direction in map(str, sweep["direction"].values):
        moved, whole = _differences(sweep, direction)
        zero = np.zeros(len(whole))
        base = "corrupted_correct" if direction == "denoise" else "clean_correct"
        correct = sweep["correct"].sel(direction=direction).transpose("sample", "layer", "group")
        change = 100 * (correct.values - sweep[base].values[:, None, None])
        layers, groups = np.indices(moved.shape[1:])
        columns: dict[str, Any] = {
            "direction": direction,
            "layer": sweep["layer"].values[layers.ravel()],
            "group": sweep["group"].values[groups.ravel()],
        }
        intervals = {
            "recovered": recovered_share(sweep, direction, seed=seed),
            "logprob_change": paired(moved, zero, images, seed=seed),
            "accuracy_change": paired(change, zero, images, seed=seed),
        }
        for name, interval in intervals.items():
            columns |= {key: np.ravel(each) for key, each in interval.columns(name).items()}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def agreement(exact: xr.Dataset, estimate: xr.Dataset) -> dict[str, float]:
    """How well estimated patches agree with exact ones on the same cases, over all of them that
    change something: Spearman's and Pearson's correlation of what each moves (mean over samples),
    the slope of exact on estimate, and the share of cases with the same sign.
    """
    exact_parts = []
    estimated_parts = []
    for direction in map(str, exact["direction"].values):
        exact_moved, _ = _differences(exact, direction)
        estimated_moved, _ = _differences(estimate, direction)
        exact_parts.append(exact_moved.mean(0).ravel())
        estimated_parts.append(estimated_moved.mean(0).ravel())
    both = np.stack([np.concatenate(exact_parts), np.concatenate(estimated_parts)])
    changes = (both != 0).any(0)
    both = both[:, changes]
    if both.shape[1] < 3 or not (both.std(1) > 0).all():
        return dict.fromkeys(("spearman", "pearson", "slope", "same_sign"), float("nan"))
    first, second = both
    return {
        "spearman": float(spearman(first, second)),
        "pearson": float(np.corrcoef(both)[0, 1]),
        "slope": float((first @ second) / (second @ second)),
        "same_sign": float((np.sign(first) == np.sign(second)).mean()),
    }
