"""Means over samples with an interval, drawing images, of samples that come some at a time.

    running = RunningBootstrap(images, seed=0)      # the image of each sample that will come
    for values in blocks:
        running.add(values)                         # (sample, *case), NaN = missing
    running.interval()

What is drawn, and why: `bootstrap.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt16

PerCase = Float[np.ndarray, "*case"]
PerSample = Float[np.ndarray, "sample *case"]
PerImage = Float[np.ndarray, "image *case"]
Draws = Float[np.ndarray, "draw *case"]
Images = Sequence[str] | np.ndarray  # the image of each sample, by any name or number

LEVEL = 0.95
DRAWS = 2000
BLOCK = 20_000_000  # numbers in memory at once: many images are drawn in blocks


@dataclass(frozen=True)
class Interval:
    """Estimates with their bounds, all of the same shape. Bounds are NaN where fewer than two
    images have a value.
    """

    estimate: PerCase
    low: PerCase
    high: PerCase
    level: float

    def columns(self, name: str, scale: float = 1.0) -> dict[str, np.ndarray]:
        """Columns of a table: `name`, `name_low` and `name_high`."""
        columns = {name: self.estimate, f"{name}_low": self.low, f"{name}_high": self.high}
        return {key: scale * values for key, values in columns.items()}


class RunningBootstrap:
    """`bootstrap` of samples that come some at a time: memory does not grow with what is kept of a
    sample, only by `draws` bytes an image.
    """

    def __init__(self, images: Images, *, seed: int, draws: int = DRAWS):
        """`images`: those of all samples, in the order in which the samples will come."""
        names, self._image_of = np.unique(np.asarray(images), return_inverse=True)
        self._times = times_drawn(len(names), draws, seed)
        self._seen = 0
        self._sums = self._counts = np.zeros(0)
        self._drawn_sums = self._drawn_counts = np.zeros(0)
        self._first = self._last = np.zeros(0, int)

    def add(self, values: PerSample, weights: PerSample | None = None) -> None:
        """The next samples; NaN values are left out."""
        shape = values.shape[1:]
        images = len(self._image_of)
        if not self._seen:
            draws = len(self._times)
            self._sums = np.zeros(shape)
            self._counts = np.zeros(shape)
            self._drawn_sums = np.zeros((draws, *shape))
            self._drawn_counts = np.zeros((draws, *shape))
            # of each case: the first and the last image that has a value
            self._first = np.full(shape, images)
            self._last = np.full(shape, -1)
        rows = self._image_of[self._seen : self._seen + len(values)]
        self._seen += len(values)
        shown, image_of = np.unique(rows, return_inverse=True)
        sums, counts = sums_by_image(values, image_of, len(shown), weights)
        self._sums += sums.sum(0)
        self._counts += counts.sum(0)
        step = max(1, BLOCK // len(shown))
        for start in range(0, len(self._times), step):
            draws = slice(start, start + step)
            times = self._times[draws, shown].astype(float)
            self._drawn_sums[draws] += np.tensordot(times, sums, axes=1)
            self._drawn_counts[draws] += np.tensordot(times, counts, axes=1)
        image = shown.reshape(-1, *[1] * len(shape))
        has_value = counts > 0
        first = np.where(has_value, image, images).min(0)
        last = np.where(has_value, image, -1).max(0)
        self._first = np.minimum(self._first, first)
        self._last = np.maximum(self._last, last)

    def interval(self, level: float = LEVEL) -> Interval:
        """The mean over all samples that have come, with its percentile interval."""
        low, high = quantiles(ratio(self._drawn_sums, self._drawn_counts), level)
        several = self._first < self._last  # one image says nothing about others
        low = np.where(several, low, np.nan)
        high = np.where(several, high, np.nan)
        return Interval(ratio(self._sums, self._counts), low, high, level)


def times_drawn(image_count: int, draws: int, seed: int) -> UInt16[np.ndarray, "draw image"]:
    """How often each image is drawn, of as many as there are, with replacement."""
    rng = np.random.default_rng(seed)
    equal = np.full(image_count, 1 / image_count)
    block = max(1, BLOCK // image_count)
    blocks = [
        rng.multinomial(image_count, equal, size=min(block, draws - start)).astype(np.uint16)
        for start in range(0, draws, block)
    ]
    return np.concatenate(blocks)


def sums_by_image(
    values: PerSample,
    image_of: Int[np.ndarray, "sample"],
    image_count: int,
    weights: PerSample | None,
) -> tuple[PerImage, PerImage]:
    """Sums of weight · value and of weights on each image; NaN values are left out."""
    given = 1.0 if weights is None else weights
    weights = np.where(np.isnan(values), 0.0, given)
    shape = (image_count, *values.shape[1:])
    sums = np.zeros(shape)
    counts = np.zeros(shape)
    np.add.at(sums, image_of, np.nan_to_num(values) * weights)
    np.add.at(counts, image_of, weights)
    return sums, counts


def ratio(sums: np.ndarray | np.floating, counts: np.ndarray | np.floating) -> np.ndarray:
    """NaN where nothing was counted."""
    sums = np.asarray(sums)
    counts = np.asarray(counts)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def quantiles(drawn: Draws, level: float) -> tuple[PerCase, PerCase]:
    """The bounds between which `level` of the draws lie. Draws without a value (no image of a case
    was drawn) are left out; NaN where no draw has one.
    """
    bounds = [(1 - level) / 2, (1 + level) / 2]
    low_and_high = np.full((2, *drawn.shape[1:]), np.nan)
    missing = np.isnan(drawn)
    is_complete = ~missing.any(0)
    is_partial = ~is_complete & ~missing.all(0)
    if len(drawn) and is_complete.any():
        complete = drawn[:, is_complete]
        low_and_high[:, is_complete] = np.quantile(complete, bounds, axis=0)
    if is_partial.any():
        partial = drawn[:, is_partial]
        low_and_high[:, is_partial] = np.nanquantile(partial, bounds, axis=0)
    return low_and_high[0, ...], low_and_high[1, ...]
