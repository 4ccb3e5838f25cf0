"""One number from many: the mean over heads, then over samples, with a bootstrap over images.

Questions about one image are not independent, so images are drawn with replacement, each with all
of its samples. The band is the 95 % percentile interval; with fewer than two images there is none.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from probe.errors import ProbeError, one_of
from probe.records import node
from probe.records.bootstrap import bootstrap
from probe.records.running_bootstrap import Interval, RunningBootstrap
from probe.records.sample_blocks import largest, sample_blocks
from probe.records.sample_images import images

COUNT_OF = {
    "mass": "query_count",
    "share": "share_count",
    "lift": "query_count",
    "contribution": "query_count",
    "entropy": "entropy_count",
    "head_entropy": "head_entropy_count",
    "entropy_ratio": "entropy_count",
    "head_entropy_ratio": "head_entropy_count",
}
DRAWS = 1000
_DIMS = ("sample", "layer", "head", "query_type", "key_type")
WEIGHTS = {"sample": "each counts once", "query_count": "weighted by their queries"}


class Average(NamedTuple):
    """Values without the axis `sample`; without a band `low` and `high` equal the mean."""

    mean: xr.DataArray
    low: xr.DataArray
    high: xr.DataArray


def average(
    record: xr.DataTree,
    stack: str,
    value: str,
    *,
    weights: str = "sample",
    per_head: bool = False,
    seed: int = 0,
    band: bool = True,
) -> Average:
    """The mean of `value` over samples, and over heads unless `per_head`.

    Args:
        weights: "sample" (every sample, and every head in it, counts once) or "query_count" (every
            query does).

    Dims: (layer, [head], query_type, key_type). Raises ProbeError for a stack or value that the
    record does not have, and for unknown weights.
    """
    measured = node(record, stack)
    held = [name for name in COUNT_OF if name in measured]
    if value not in held:
        raise ProbeError(
            "plots", expected=f"a value that the record holds ({', '.join(held)})", got=repr(value)
        )
    one_of("plots", "weights of", weights, WEIGHTS)
    images_of = images(record) if band else np.zeros(measured.sizes["sample"], int)
    running = RunningBootstrap(images_of, seed=seed, draws=DRAWS)
    for block in sample_blocks(measured, [value, COUNT_OF[value]]):
        values, weight = _per_sample(block, value, weights, per_head)
        running.add(values.values, weight.values)
    template = values.isel(sample=0, drop=True).assign_attrs(measured[value].attrs)
    # where causality hides all keys of a type, share is 0 and not NaN: it is not drawn either
    visible = largest(measured, "query_count") > 0
    parts = _with_bounds(running.interval())
    return Average(*(template.copy(data=part).where(visible) for part in parts))


def _per_sample(
    block: xr.Dataset, value: str, weights: str, per_head: bool
) -> tuple[xr.DataArray, xr.DataArray]:
    """The value of each sample, by default the mean over heads, and how much it counts."""
    values = block[value]
    count = block[COUNT_OF[value]]
    weight = xr.ones_like(count) if weights == "sample" else count
    if "head" in values.dims and not per_head:
        values = values.weighted(weight).mean("head")
        weight = weight.sum("head") if "head" in weight.dims else weight
    values, weight = xr.broadcast(values, weight)
    dims = [dim for dim in _DIMS if dim in values.dims]
    values = values.transpose(*dims).astype(float)
    weight = weight.transpose(*dims).astype(float)
    return values, weight


def mean_and_band(
    values: Float[np.ndarray, "sample *rest"],
    weights: Float[np.ndarray, "sample *rest"],
    images_of: Int[np.ndarray, " sample"],
    *,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Weighted mean over samples and its 95 % interval; the mean as both bounds without one.

    A NaN value has no weight; the mean of no values is NaN.

    >>> mean, low, high = mean_and_band(np.array([1.0, 3.0]), np.ones(2), np.array([0, 1]))
    >>> float(mean), float(low), float(high)
    (2.0, 1.0, 3.0)
    """
    return _with_bounds(bootstrap(values, images_of, weights=weights, seed=seed, draws=DRAWS))


def _with_bounds(interval: Interval) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and bounds; the mean as both bounds where there is no interval."""
    mean = interval.estimate
    low = np.where(np.isnan(interval.low), mean, interval.low)
    high = np.where(np.isnan(interval.high), mean, interval.high)
    return mean, low, high


def sampling(
    records: Mapping[str, xr.DataTree], stack: str, weights: str, seed: int | None = None
) -> list[str]:
    """How samples became one line, for a caption; once where it is the same for all records.

    Without a seed the note does not mention a band.
    """
    notes = {name: _sampling(record, stack, weights, seed) for name, record in records.items()}
    if len(set(notes.values())) == 1:
        return [*notes.values()][:1]
    return [f"{name}: {note}" for name, note in notes.items()]


def _sampling(record: xr.DataTree, stack: str, weights: str, seed: int | None) -> str:
    with_values = []
    for block in sample_blocks(node(record, stack), ["mass"]):
        mass = block["mass"].values
        with_values.append(~np.isnan(mass).all(axis=tuple(range(1, mass.ndim))))
    entered = np.concatenate(with_values)
    samples = int(entered.sum())
    shown = len(np.unique(images(record)[entered]))
    if samples == 1:
        return "one sample"
    note = f"mean of {samples} samples ({WEIGHTS[weights]})"
    if seed is None:
        return note
    if shown == 1:
        return f"{note}; one image: no band"
    return f"{note}; band: 95 % bootstrap interval over {shown} images (seed {seed})"
