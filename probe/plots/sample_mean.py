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
from probe.records.provenance import content_hash

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
    values = measured[value]
    count = measured[COUNT_OF[value]]
    weight = xr.ones_like(count) if weights == "sample" else count
    attrs = values.attrs
    if "head" in values.dims and not per_head:
        values = values.weighted(weight).mean("head")
        weight = weight.sum("head") if "head" in weight.dims else weight
    values, weight = xr.broadcast(values, weight)
    dims = [dim for dim in _DIMS if dim in values.dims]
    values, weight = values.transpose(*dims).astype(float), weight.transpose(*dims).astype(float)
    images_of = images(record) if band else np.zeros(values.sizes["sample"], int)
    template = values.isel(sample=0, drop=True).assign_attrs(attrs)
    # where causality hides all keys of a type, share is 0 and not NaN: it is not drawn either
    visible = (measured["query_count"] > 0).any("sample")
    parts = mean_and_band(values.values, weight.values, images_of, seed=seed)
    return Average(*(template.copy(data=part).where(visible) for part in parts))


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
    interval = bootstrap(values, images_of, weights=weights, seed=seed, draws=DRAWS)
    mean = interval.estimate
    low, high = (np.where(np.isnan(end), mean, end) for end in (interval.low, interval.high))
    return mean, low, high


def images(record: xr.DataTree) -> Int[np.ndarray, " sample"]:
    """A number for each sample; samples that show the same images share it."""
    root, numbers = record.to_dataset(), {}
    keys = [_image_key(root, sample) for sample in range(record.sizes["sample"])]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _image_key(root: xr.Dataset, sample: int) -> object:
    """What identifies the images of a sample: hashes, else pixels, else the sample itself."""
    one = root.isel(sample=sample)
    if "image_sha256" in one and any(hashes := one["image_sha256"].values.tolist()):
        return tuple(hashes)
    if "images" in one and one["image_size"].values.any():
        return content_hash([one["image_size"].values.tobytes(), one["images"].values.tobytes()])
    return sample


def sampling(
    named: Mapping[str, xr.DataTree], stack: str, weights: str, seed: int | None = None
) -> list[str]:
    """How samples became one line, for a caption; once where it is the same for all records.

    Without a seed nothing is said of a band.
    """
    notes = {name: _sampling(record, stack, weights, seed) for name, record in named.items()}
    if len(set(notes.values())) == 1:
        return [*notes.values()][:1]
    return [f"{name}: {note}" for name, note in notes.items()]


def _sampling(record: xr.DataTree, stack: str, weights: str, seed: int | None) -> str:
    mass = node(record, stack)["mass"]
    entered = mass.notnull().any([dim for dim in mass.dims if dim != "sample"]).values
    samples, shown = int(entered.sum()), len(np.unique(images(record)[entered]))
    if samples == 1:
        return "one sample"
    note = f"mean of {samples} samples ({WEIGHTS[weights]})"
    if seed is None:
        return note
    if shown == 1:
        return f"{note}; one image: no band"
    return f"{note}; band: 95 % bootstrap interval over {shown} images (seed {seed})"
