"""Confidence intervals when many questions share an image.

GQA asks 12,578 questions about 398 images, so questions are not independent, and images are what is
resampled: each draw takes as many images as there are, with replacement, with all questions about
them (a cluster bootstrap). The value is then a weighted mean over the questions drawn:

    estimate* = sum_image n_image sum(weight · value) / sum_image n_image sum(weight)

Cases (the layers of a sweep) are drawn together, so that their differences are paired. A curve gets
a band that holds at all its points at once: max-t, the largest deviation over the points in units
of each point's standard error.

    interval = bootstrap(correct, images, seed=0)         # correct: (sample, case), NaN = missing
    running = RunningBootstrap(images, seed=0)            # the same, some samples at a time
    drop = paired(correct, untouched, images, seed=0)     # the difference to the untouched model
    curve = band(correct, images, seed=0)                 # simultaneous over cases
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int

from probe.errors import ProbeError
from probe.records.running_bootstrap import (
    BLOCK,
    DRAWS,
    LEVEL,
    Draws,
    Images,
    Interval,
    PerCase,
    PerImage,
    PerSample,
    RunningBootstrap,
    quantiles,
    ratio,
    sums_by_image,
    times_drawn,
)

Statistic = Callable[[Int[np.ndarray, "sample"]], "float | Float[np.ndarray, '*case']"]


def bootstrap(
    values: PerSample,
    images: Images,
    *,
    seed: int,
    level: float = LEVEL,
    draws: int = DRAWS,
    weights: PerSample | None = None,
) -> Interval:
    """Mean over samples with a percentile interval, drawing images. NaN values are left out.

    `images` names the image of each sample; `weights` are those of the mean, by default equal.
    Raises ProbeError when the lengths differ.

    >>> scores = np.array([1.0, 1.0, 0.0, 0.0])
    >>> interval = bootstrap(scores, ["a", "a", "b", "b"], seed=0)
    >>> float(interval.estimate), float(interval.low), float(interval.high)
    (0.5, 0.0, 1.0)
    """
    _check_lengths("intervals", len(values), images)
    running = RunningBootstrap(images, seed=seed, draws=draws)
    running.add(values, weights)
    return running.interval(level)


def paired(
    values: PerSample,
    baseline: Float[np.ndarray, "sample"],
    images: Images,
    *,
    seed: int,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Interval:
    """Mean difference to the baseline on the same samples; a sample counts only where both have a
    value.
    """
    difference = values - baseline.reshape(-1, *[1] * (values.ndim - 1))
    return bootstrap(difference, images, seed=seed, level=level, draws=draws)


def band(
    values: Float[np.ndarray, "sample case"],
    images: Images,
    *,
    seed: int,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Interval:
    """A band that covers the whole curve with probability `level`: estimate ± c · standard error
    (max-t).

    Points without any spread over the draws get a band of no width.
    """
    sums, counts = _by_image(values, images)
    estimate = ratio(sums.sum(0), counts.sum(0))
    width = _max_t(_draw(sums, counts, draws, seed), estimate, level)
    return _interval(sums, counts, estimate - width, estimate + width, level)


def bootstrap_statistic(
    statistic: Statistic,
    images: Images,
    *,
    seed: int,
    level: float = LEVEL,
    draws: int = 500,
) -> Interval:
    """Interval of any number, or of one for each case: `statistic` gets how often each sample
    counts (all ones: the estimate).

    For what is not a mean over samples: F1, MMBench's circular accuracy, MME's points.
    """
    estimate, drawn = _statistics(statistic, images, draws, seed)
    low, high = quantiles(drawn, level)
    return Interval(estimate, low, high, level)


def band_statistic(
    statistic: Statistic,
    images: Images,
    *,
    seed: int,
    level: float = LEVEL,
    draws: int = 500,
) -> Interval:
    """As `band`, of any number that `statistic` gives for each case."""
    estimate, drawn = _statistics(statistic, images, draws, seed)
    width = _max_t(drawn, estimate, level) if len(drawn) else np.full_like(estimate, np.nan)
    return Interval(estimate, estimate - width, estimate + width, level)


def _statistics(
    statistic: Statistic, images: Images, draws: int, seed: int
) -> tuple[PerCase, Draws]:
    """The estimate, and the values over the draws: none where there is a single image."""
    names, image_of = np.unique(np.asarray(images), return_inverse=True)
    image_count = len(names)
    rng = np.random.default_rng(seed)
    estimate = np.array(statistic(np.ones(len(image_of), dtype=np.int64)), dtype=float)
    drawn = []
    for _ in range(draws if image_count > 1 else 0):
        chosen = rng.integers(image_count, size=image_count)
        times = np.bincount(chosen, minlength=image_count)
        drawn.append(statistic(times[image_of]))
    return estimate, np.array(drawn, dtype=float).reshape(len(drawn), *estimate.shape)


def _max_t(
    drawn: Float[np.ndarray, "draw case"], estimate: Float[np.ndarray, "case"], level: float
) -> Float[np.ndarray, "case"]:
    """Half the width of a band that covers all cases at once; 0 where nothing varies over the
    draws. Draws without a value (no image of a category was drawn) are left out."""
    drawn = np.ma.masked_invalid(drawn)
    error = drawn.std(axis=0, ddof=1).filled(0.0)
    varies = error > 0
    if not varies.any():
        return error
    deviation = np.abs(drawn[:, varies] - estimate[varies])
    largest = (deviation / error[varies]).max(axis=1)
    return np.quantile(largest.compressed(), level) * error


def wilson(
    correct: Float[np.ndarray, "sample"] | Bool[np.ndarray, "sample"],
    images: Images,
    *,
    level: float = LEVEL,
) -> Interval:
    """Wilson's interval of a share; valid only where no two questions share an image.

    Raises ProbeError when questions share images, or values are other than 0 and 1. NaN is left
    out.
    """
    values = np.asarray(correct, dtype=float)
    names = np.asarray(images)
    _check_lengths("wilson", len(values), names)
    known = ~np.isnan(values)
    values = values[known]
    names = names[known]
    image_count = len(np.unique(names))
    if image_count < len(names):
        raise ProbeError(
            "wilson",
            expected="one question an image",
            got=f"{len(names)} questions on {image_count} images",
            fix="use bootstrap, which draws images",
        )
    others = values[~np.isin(values, (0, 1))]
    if len(others):
        raise ProbeError("wilson", expected="values of 0 and 1", got=f"{others[0]}")
    low, high = wilson_bounds(int(values.sum()), len(values), level)
    share = values.mean() if len(values) else np.nan
    return Interval(np.array(share), np.array(low), np.array(high), level)


def wilson_bounds(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of `successes` out of `trials`; NaN for no trials.

    >>> [round(bound, 4) for bound in wilson_bounds(8, 10)]
    [0.4902, 0.9433]
    """
    if trials == 0:
        return float("nan"), float("nan")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    shrink = 1 + z**2 / trials
    middle = (share + z**2 / (2 * trials)) / shrink
    variance = share * (1 - share) / trials + z**2 / (4 * trials**2)
    half = z * np.sqrt(variance) / shrink
    low = np.clip(middle - half, 0, share)  # rounding must not move a bound past the share
    high = np.clip(middle + half, share, 1)
    return float(low), float(high)


def _by_image(
    values: PerSample,
    images: Images,
    weights: PerSample | None = None,
) -> tuple[PerImage, PerImage]:
    """Sums of weight · value and of weights on each image."""
    _check_lengths("intervals", len(values), images)
    names, image_of = np.unique(np.asarray(images), return_inverse=True)
    return sums_by_image(values, image_of, len(names), weights)


def _check_lengths(called: str, samples: int, images: Images) -> None:
    if samples != len(images) or not samples:
        raise ProbeError(
            called,
            expected="an image for each of at least one sample",
            got=f"{samples} samples, {len(images)} images",
        )


def _draw(
    sums: PerImage,
    counts: PerImage,
    draws: int,
    seed: int,
) -> Draws:
    """Means over images drawn with replacement. Blocks save memory and do not change the draws."""
    all_times = times_drawn(len(sums), draws, seed)
    block = max(1, BLOCK // len(sums))
    means = []
    for start in range(0, draws, block):
        times = all_times[start : start + block].astype(float)
        drawn_sums = np.tensordot(times, sums, axes=1)
        drawn_counts = np.tensordot(times, counts, axes=1)
        means.append(ratio(drawn_sums, drawn_counts))
    return np.concatenate(means)


def _interval(
    sums: PerImage,
    counts: PerImage,
    low: PerCase,
    high: PerCase,
    level: float,
) -> Interval:
    known = (counts > 0).sum(axis=0) >= 2  # one image says nothing about others
    estimate = ratio(sums.sum(0), counts.sum(0))
    low = np.where(known, low, np.nan)
    high = np.where(known, high, np.nan)
    return Interval(estimate, low, high, level)
