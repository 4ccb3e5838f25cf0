"""A dataset of many samples, some samples at a time: what a run of any length is drawn from.

    for block in sample_blocks(record["llm"].to_dataset(), ["mass", "query_count"]):
        block["mass"].values                   # in memory, of a part of the samples
    largest(measured, "query_count")           # over all samples

A dataset that was left on the disk (`RunDirectory.merged`) is read once, a chunk after the other.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

BLOCK_BYTES = 32_000_000  # of the variables that are asked for, in memory at once


def sample_blocks(dataset: xr.Dataset, names: Sequence[str]) -> Iterator[xr.Dataset]:
    """Some variables, in memory, block after block along `sample`."""
    chosen = dataset[list(names)]
    samples = chosen.sizes["sample"]
    step = _samples_at_once(chosen)
    for start in range(0, samples, step):
        yield chosen.isel(sample=slice(start, start + step)).load()


def largest(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """The greatest value of a variable over all samples."""
    maxima = [block[name].max("sample") for block in sample_blocks(dataset, [name])]
    return xr.concat(maxima, "sample").max("sample")


def _samples_at_once(chosen: xr.Dataset) -> int:
    """As many as are together in a file, so that nothing is read twice; else as many as fit."""
    variables = [one for one in chosen.data_vars.values() if "sample" in one.dims]
    chunks = [one.encoding.get("preferred_chunks", {}) for one in variables]
    together = [chunk.get("sample", 0) for chunk in chunks]
    if any(together):
        return max(together)
    size = sum(variable.nbytes for variable in variables) / chosen.sizes["sample"]
    return max(1, int(BLOCK_BYTES / max(size, 1)))


def differ(dataset: xr.Dataset, first: str, second: str, tolerance: float) -> bool:
    """Whether two variables differ by `tolerance` or more somewhere; NaN differs from nothing."""
    for block in sample_blocks(dataset, [first, second]):
        difference = np.abs((block[first] - block[second]).values)
        if (np.nan_to_num(difference) >= tolerance).any():
            return True
    return False
