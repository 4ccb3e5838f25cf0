"""What a head sweep holds, and each head's effect with its interval and test.

    effects = head_effects(table)           # a data frame, the largest effect first
    effects[effects["q"] <= 0.05]           # significant at a false discovery rate of 5 %

    effect            mean of (log p(gold) untouched - log p(gold) without the head), nats
    picture_effect    the same, less the effect on the same answers about another image
    q                 false discovery rate of the image's effect; of the effect, without a control

Intervals: 95 %, bootstrap over images, paired. The test: `significance.py`.
"""

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from probe.errors import ProbeError
from probe.records.bootstrap import paired
from probe.records.schema import Variable
from probe.records.significance import RATE, false_discovery, paired_p

BESIDE = ("mass", "head_entropy", "contribution")  # of the answer → vision, where measured too

_HEADS = "sample layer head"
SCHEMA = {
    "gold_logprob": Variable(_HEADS, "nat", "log-probability of the gold answer without the head"),
    "correct": Variable(_HEADS, "1", "greedy decoding begins with the gold answer"),
    "kl": Variable(
        _HEADS, "nat", "KL divergence of the next-token distribution from the untouched model's"
    ),
    "another_image": Variable(
        _HEADS, "nat", "log-probability of the gold answer about another image"
    ),
    "untouched_gold_logprob": Variable("sample", "nat", "log-probability of the gold answer"),
    "untouched_correct": Variable("sample", "1", "greedy decoding begins with the gold answer"),
    "untouched_another_image": Variable(
        "sample", "nat", "log-probability of the gold answer about another image"
    ),
    "mass": Variable(_HEADS, "fraction", "attention of the answer to vision"),
    "head_entropy": Variable(_HEADS, "nat", "entropy of the answer's attention over vision"),
    "contribution": Variable(_HEADS, "norm", "contribution of vision to the answer's rows"),
    "image": Variable("sample", "text", "the image that was asked about", dtype="object"),
}


def head_effects(table: xr.Dataset, *, rate: float = RATE, seed: int = 0) -> pd.DataFrame:
    """A row for each head that was ablated, the largest effect first; layers and heads from 0.

    Columns: layer, head, effect, picture_effect, accuracy_change (percent) with their bounds
    (_low, _high; NaN with a single image), kl, p, q, significant (q at most `rate`). Raises
    ProbeError for a dataset that is none of a head sweep.
    """
    if "untouched_gold_logprob" not in table:
        raise ProbeError("head_effects", expected="a head sweep", got=", ".join(map(str, table)))
    images = table["image"].values.astype(str)
    effect = _effect(table, "gold_logprob")
    other = _effect(table, "another_image")
    of_image = effect - other
    has_control = bool(np.isfinite(of_image).any())
    accuracy = -100 * _effect(table, "correct")
    zero = np.zeros(len(images))
    layers, heads = np.indices(effect.shape[1:])
    p = paired_p(of_image if has_control else effect, images)
    q = false_discovery(np.where(np.isnan(effect).all(0), np.nan, p))
    columns = {"layer": layers, "head": heads}
    for name, values in (
        ("effect", effect),
        ("picture_effect", of_image),
        ("accuracy_change", accuracy),
    ):
        columns |= paired(values, zero, images, seed=seed).columns(name)
    columns |= {"kl": _mean(table["kl"].values), "p": p, "q": q, "significant": q <= rate}
    frame = pd.DataFrame({name: np.ravel(values) for name, values in columns.items()})
    order = np.argsort(-frame["effect"].to_numpy(), kind="stable")
    known = np.isfinite(frame["effect"].to_numpy()).sum()  # heads not ablated come last: NaN
    return frame.iloc[order[:known]].reset_index(drop=True)


def _effect(table: xr.Dataset, name: str) -> Float[np.ndarray, "sample layer head"]:
    """Untouched less ablated: positive where the head adds to the answer."""
    untouched = table[f"untouched_{name}"].values.astype(float)[:, None, None]
    return untouched - table[name].transpose("sample", "layer", "head").values.astype(float)


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(0)
    nothing = np.full(total.shape, np.nan)
    return np.divide(total, known.sum(0), out=nothing, where=known.any(0))
