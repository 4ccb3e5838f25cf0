"""One number from many: over heads, then over samples, with a bootstrap band over images.

Questions about one image are no independent evidence, so images are drawn with replacement, each
with all of its samples. The band is the 95 % percentile interval; with fewer than two images there
is none.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from probe.errors import ProbeError
from probe.records import entropy_ratio, node

COUNT_OF = {
    "mass": "query_count",
    "share": "share_count",
    "lift": "query_count",
    "contribution": "query_count",
    "entropy": "entropy_count",
    "head_entropy": "head_entropy_count",
}
WEIGHTS = {"sample": "each counts once", "query_count": "weighted by their queries"}


class Average(NamedTuple):
    """Dims of the values without `sample`; `low` and `high` are the mean where there is no band."""

    mean: xr.DataArray
    low: xr.DataArray
    high: xr.DataArray


def average(
    record: xr.DataTree,
    stack: str,
    value: str,
    *,
    weights: str = "sample",
    ratio: bool = False,
    per_head: bool = False,
    seed: int = 0,
    band: bool = True,
) -> Average:
    """`value` over samples, and over heads unless `per_head`: (layer, [head], query_type,
    key_type).

    weights: "sample" (every sample, and every head in it, counts once) or "query_count" (every
    query does).
    """
    measured = node(record, stack)
    _check(measured, value, weights)
    values = entropy_ratio(record, stack, value) if ratio else measured[value]
    attrs, count = values.attrs, measured[COUNT_OF[value]]
    weight = xr.ones_like(count) if weights == "sample" else count
    if "head" in values.dims and not per_head:
        values = values.weighted(weight).mean("head")
        weight = weight.sum("head") if "head" in weight.dims else weight
    values, weight = xr.broadcast(values, weight)
    dims = [
        dim for dim in ("sample", "layer", "head", "query_type", "key_type") if dim in values.dims
    ]
    values, weight = values.transpose(*dims), weight.transpose(*dims)
    numbers = values.values.astype(float), weight.values.astype(float)
    template = values.isel(sample=0, drop=True).assign_attrs(attrs)
    visible = (measured["query_count"] > 0).any(
        "sample"
    )  # share is 0, not NaN, where causality hides all
    clusters = images(record) if band else np.zeros(len(numbers[0]), int)
    return Average(
        *(
            template.copy(data=part).where(visible)
            for part in bootstrap(*numbers, clusters, seed=seed)
        )
    )


def _check(measured: xr.Dataset, value: str, weights: str) -> None:
    if value not in COUNT_OF or value not in measured:
        there = ", ".join(name for name in COUNT_OF if name in measured)
        raise ProbeError(
            "plots", expected=f"a value that the record holds ({there})", got=repr(value)
        )
    if weights not in WEIGHTS:
        raise ProbeError("plots", expected=f"weights of {', '.join(WEIGHTS)}", got=repr(weights))


def bootstrap(
    values: Float[np.ndarray, "sample *rest"],
    weights: Float[np.ndarray, "sample *rest"],
    clusters: Int[np.ndarray, " sample"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Weighted mean over samples, and the 2.5 % and 97.5 % quantiles when whole clusters are
    redrawn.

    NaN values carry no weight; a mean of nothing is NaN.

    >>> mean, low, high = bootstrap(np.array([1.0, 3.0]), np.ones(2), np.array([0, 1]))
    >>> float(mean), float(low), float(high)
    (2.0, 1.0, 3.0)
    """
    shape = values.shape[1:]
    weights = np.where(np.isnan(values), 0, weights).reshape(len(values), -1)
    sums = np.nan_to_num(values).reshape(len(values), -1) * weights
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (sums.sum(0) / weights.sum(0)).reshape(shape)
        groups = clusters.max() + 1
        if groups < 2:
            return mean, mean, mean
        drawn = np.random.default_rng(seed).multinomial(
            groups, np.full(groups, 1 / groups), resamples
        )
        times = drawn[:, clusters].astype(float)
        redrawn = (times @ sums) / (times @ weights)
    low, high = mean.copy().reshape(-1), mean.copy().reshape(-1)
    known = ~np.isnan(redrawn).all(0)
    low[known], high[known] = np.nanquantile(redrawn[:, known], [0.025, 0.975], axis=0)
    return mean, low.reshape(shape), high.reshape(shape)


def images(record: xr.DataTree) -> Int[np.ndarray, " sample"]:
    """A number for each sample; samples that show the same images share it."""
    root, seen = record.to_dataset(), {}
    return np.array(
        [seen.setdefault(_shown(root, i), len(seen)) for i in range(record.sizes["sample"])]
    )


def _shown(root: xr.Dataset, sample: int) -> object:
    """What tells a sample's images from others': hashes, else pixels, else the sample itself."""
    here = root.isel(sample=sample)
    if "image_sha256" in here and any(hashes := here["image_sha256"].values.tolist()):
        return tuple(hashes)
    if "images" in here and here["image_size"].values.any():
        pixels = here["image_size"].values.tobytes() + here["images"].values.tobytes()
        return hashlib.sha256(pixels).digest()
    return sample


def sampling(
    named: Mapping[str, xr.DataTree], stack: str, weights: str, seed: int | None = None
) -> list[str]:
    """How samples became one line, for a caption; once where it is the same for all. No seed: no
    band.
    """
    notes = {name: _sampling(record, stack, weights, seed) for name, record in named.items()}
    same = len(set(notes.values())) == 1
    return [*notes.values()][:1] if same else [f"{name}: {note}" for name, note in notes.items()]


def _sampling(record: xr.DataTree, stack: str, weights: str, seed: int | None) -> str:
    mass = node(record, stack)["mass"]
    entered = mass.notnull().any([dim for dim in mass.dims if dim != "sample"]).values
    samples, shown = int(entered.sum()), len(np.unique(images(record)[entered]))
    if samples == 1:
        return "one sample"
    band = (
        f"band: 95 % bootstrap interval over {shown} images (seed {seed})"
        if shown > 1
        else "one image: no band"
    )
    return f"mean of {samples} samples ({WEIGHTS[weights]})" + (
        f"; {band}" if seed is not None else ""
    )
