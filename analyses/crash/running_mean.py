"""Means over samples that never are in memory together, exact whatever the order and the parts they
come in.

    mean = sum_sample weight · value / sum_sample weight         (over samples whose value is not NaN)

Sums are kept to twice the precision of a float64 (the rounding error of every addition is carried
along), so that a run that was interrupted, or split over workers, gives the same bits as one that
was not.

    mean = RunningMean()
    for part in run.stream():
        mean.add(part["llm"]["mass"])            # or weights=part["llm"]["query_count"]
    mean.result()                               # an xarray.DataArray without the dimension `sample`
"""

import numpy as np
import xarray as xr

from probe.errors import ProbeError

SAMPLE = "sample"


class RunningMean:
    """A weighted mean over `sample`, one part at a time."""

    def __init__(self) -> None:
        self._like: xr.DataArray | None = None
        self._sum: tuple[np.ndarray, np.ndarray] = (np.zeros(()), np.zeros(()))
        self._weight: tuple[np.ndarray, np.ndarray] = (np.zeros(()), np.zeros(()))

    def add(self, values: xr.DataArray, weights: xr.DataArray | None = None) -> None:
        """Adds the samples of a part. Raises ProbeError unless its other dimensions are the first
        part's.
        """
        values, weight = xr.broadcast(values, xr.ones_like(values) if weights is None else weights)
        values, weight = values.transpose(SAMPLE, ...), weight.transpose(SAMPLE, ...)
        if self._like is None:
            self._like = values.isel({SAMPLE: slice(0, 0)}).drop_vars(SAMPLE, errors="ignore")
        mine, given = dict(list(self._like.sizes.items())[1:]), dict(list(values.sizes.items())[1:])
        if mine != given:
            raise ProbeError(
                "mean",
                expected=f"parts with {mine}",
                got=str(given),
                fix="average fixed dimensions only",
            )
        known = ~(np.isnan(values.values) | np.isnan(weight.values))
        shares = np.where(known, weight.values, 0).astype(float)
        terms = np.where(known, values.values, 0).astype(float) * shares
        for term, share in zip(terms, shares, strict=True):
            self._sum, self._weight = _plus(self._sum, term), _plus(self._weight, share)

    def merge(self, other: "RunningMean") -> None:
        """Adds all that another worker has added."""
        self._like = self._like if self._like is not None else other._like
        for term in other._sum:
            self._sum = _plus(self._sum, term)
        for term in other._weight:
            self._weight = _plus(self._weight, term)

    def result(self) -> xr.DataArray:
        """The mean; NaN where nothing was known. Raises ProbeError before the first `add`."""
        total, weight = sum(self._sum), sum(self._weight)
        return self._labelled(
            np.divide(total, weight, out=np.full(np.shape(total), np.nan), where=weight > 0)
        )

    def weight(self) -> xr.DataArray:
        """The sum of the weights that entered: without weights, the number of samples with a
        value.
        """
        return self._labelled(np.asarray(sum(self._weight)))

    def _labelled(self, values: np.ndarray) -> xr.DataArray:
        if self._like is None:
            raise ProbeError("mean", expected="at least one sample", got="none")
        coords = {name: each for name, each in self._like.coords.items() if SAMPLE not in each.dims}
        return xr.DataArray(
            values, coords, self._like.dims[1:], name=self._like.name, attrs=self._like.attrs
        )


def _plus(total: tuple[np.ndarray, np.ndarray], term: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(high, low) + term. Knuth's two-sum gives the rounding error of an addition exactly."""
    high, low = total
    new = high + term
    back = new - high
    error = (high - (new - back)) + (term - back)
    low = low + error
    top = new + low  # renormalised, so that high is the rounded sum
    return top, low - (top - new)
