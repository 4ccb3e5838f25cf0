"""How sure a number is, when many questions share an image.

GQA asks 12,578 questions about 398 images, so questions are not independent and images are what is
drawn again: each draw takes as many images as there are, with replacement, with all questions on
them (a cluster bootstrap). The value is then a mean over the questions drawn:

    estimate* = sum_image n_image sum(values) / sum_image n_image count

Cases (the layers of a sweep) are drawn together, so that their differences are paired. A curve gets
a band that holds at all its points at once: max-t, the largest deviation over the points in units
of each point's standard error.

    interval = bootstrap(correct, images, seed=0)                    # correct: (sample, case), NaN = missing
    drop = paired(correct, untouched, images, seed=0)                # the difference to the untouched model
    curve = band(correct, images, seed=0)                            # simultaneous over cases
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int

from probe.errors import ProbeError

Statistic = Callable[[Int[np.ndarray, "sample"]], "float | Float[np.ndarray, '*case']"]

LEVEL = 0.95
DRAWS = 2000
BLOCK = 20_000_000  # numbers held at once: draws are made in blocks when there are many images


@dataclass(frozen=True)
class Interval:
    """Estimates with their bounds, all of the same shape. Bounds are NaN where one image (or none)
    was seen.
    """

    estimate: Float[np.ndarray, "*case"]
    low: Float[np.ndarray, "*case"]
    high: Float[np.ndarray, "*case"]
    level: float


def bootstrap(
    values: Float[np.ndarray, "sample *case"],
    images: Sequence[str] | np.ndarray,
    *,
    seed: int,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Interval:
    """Mean over samples with a percentile interval, drawing images. NaN values are left out.

    `images` names the image of each sample. Raises ProbeError when the lengths differ.

    >>> scores = np.array([1.0, 1.0, 0.0, 0.0])
    >>> interval = bootstrap(scores, ["a", "a", "b", "b"], seed=0)
    >>> float(interval.estimate), float(interval.low), float(interval.high)
    (0.5, 0.0, 1.0)
    """
    sums, counts = _by_image(values, images)
    drawn = np.concatenate(list(_draw(sums, counts, draws, seed)))
    return _bounded(
        sums, counts, np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0), level
    )


def paired(
    values: Float[np.ndarray, "sample *case"],
    baseline: Float[np.ndarray, "sample"],
    images: Sequence[str] | np.ndarray,
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
    images: Sequence[str] | np.ndarray,
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
    estimate = _ratio(np.asarray(sums.sum(0)), np.asarray(counts.sum(0)))
    width = _max_t(np.concatenate(list(_draw(sums, counts, draws, seed))), estimate, level)
    return _bounded(sums, counts, np.stack([estimate - width, estimate + width]), level)


def bootstrap_statistic(
    statistic: Statistic,
    images: Sequence[str] | np.ndarray,
    *,
    seed: int,
    level: float = LEVEL,
    draws: int = 500,
) -> Interval:
    """Interval of any number, or of one a case: `statistic` gets how often each sample counts (all
    ones: the estimate).

    For what is no mean over samples: F1, MMBench's circular accuracy, MME's points.
    """
    estimate, drawn = _statistics(statistic, images, draws, seed)
    if not len(drawn) or np.isnan(drawn).all():
        return Interval(
            estimate, np.full_like(estimate, np.nan), np.full_like(estimate, np.nan), level
        )
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(estimate, np.array(low), np.array(high), level)


def band_statistic(
    statistic: Statistic,
    images: Sequence[str] | np.ndarray,
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
    statistic: Statistic, images: Sequence[str] | np.ndarray, draws: int, seed: int
) -> tuple[Float[np.ndarray, "*case"], Float[np.ndarray, "draw *case"]]:
    """The estimate, and the values over the draws: of a single image there are none."""
    _, member = np.unique(np.asarray(images), return_inverse=True)
    pictures, rng = int(member.max()) + 1, np.random.default_rng(seed)
    estimate = np.array(statistic(np.ones(len(member), dtype=np.int64)), dtype=float)
    drawn = [
        statistic(np.bincount(rng.integers(pictures, size=pictures), minlength=pictures)[member])
        for _ in range(draws if pictures > 1 else 0)
    ]
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
    largest = (np.abs(drawn[:, varies] - estimate[varies]) / error[varies]).max(axis=1)
    return np.quantile(largest.compressed(), level) * error


def wilson(
    correct: Float[np.ndarray, "sample"] | Bool[np.ndarray, "sample"],
    images: Sequence[str] | np.ndarray,
    *,
    level: float = LEVEL,
) -> Interval:
    """Wilson's interval of a share. Only where every question has an image of its own: else it is
    too narrow.

    Raises ProbeError when questions share images, or values are other than 0 and 1. NaN is left
    out.
    """
    values, names = np.asarray(correct, dtype=float), np.asarray(images)
    _check_lengths("wilson", len(values), names)
    values, names = values[~np.isnan(values)], names[~np.isnan(values)]
    pictures = len(np.unique(names))
    if pictures < len(names):
        raise ProbeError(
            "wilson",
            expected="one question an image",
            got=f"{len(names)} questions on {pictures} images",
            fix="use bootstrap, which draws images",
        )
    if not np.isin(values, (0, 1)).all():
        raise ProbeError(
            "wilson", expected="values of 0 and 1", got=f"{values[~np.isin(values, (0, 1))][0]}"
        )
    low, high = wilson_bounds(int(values.sum()), len(values), level)
    return Interval(
        np.array(values.mean() if len(values) else np.nan), np.array(low), np.array(high), level
    )


def wilson_bounds(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of `successes` out of `trials`; NaN of none.

    >>> [round(bound, 4) for bound in wilson_bounds(8, 10)]
    [0.4902, 0.9433]
    """
    if trials == 0:
        return float("nan"), float("nan")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, shrink = successes / trials, 1 + z**2 / trials
    middle = (share + z**2 / (2 * trials)) / shrink
    half = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / shrink
    return float(np.clip(middle - half, 0, share)), float(
        np.clip(middle + half, share, 1)
    )  # despite rounding


def _by_image(
    values: Float[np.ndarray, "sample *case"], images: Sequence[str] | np.ndarray
) -> tuple[Float[np.ndarray, "image *case"], Float[np.ndarray, "image *case"]]:
    """Sums and counts of the values on each image."""
    _check_lengths("intervals", len(values), images)
    names, member = np.unique(np.asarray(images), return_inverse=True)
    known = ~np.isnan(values)
    sums, counts = (np.zeros((len(names), *values.shape[1:])) for _ in range(2))
    np.add.at(sums, member, np.where(known, values, 0.0))
    np.add.at(counts, member, known.astype(float))
    return sums, counts


def _check_lengths(called: str, samples: int, images: Sequence[str] | np.ndarray) -> None:
    if samples != len(images) or not samples:
        raise ProbeError(
            called,
            expected="an image for each of at least one sample",
            got=f"{samples} samples, {len(images)} images",
        )


def _draw(
    sums: Float[np.ndarray, "image *case"],
    counts: Float[np.ndarray, "image *case"],
    draws: int,
    seed: int,
) -> Iterator[Float[np.ndarray, "draw *case"]]:
    """Means over images drawn with replacement, in blocks; the blocks do not change what is
    drawn.
    """
    rng, image_count = np.random.default_rng(seed), len(sums)
    block = max(1, min(draws, BLOCK // image_count))
    for start in range(0, draws, block):
        times = rng.multinomial(
            image_count, np.full(image_count, 1 / image_count), size=min(block, draws - start)
        ).astype(float)
        yield _ratio(np.tensordot(times, sums, axes=1), np.tensordot(times, counts, axes=1))


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)


def _bounded(
    sums: Float[np.ndarray, "image *case"],
    counts: Float[np.ndarray, "image *case"],
    bounds: Float[np.ndarray, "2 *case"],
    level: float,
) -> Interval:
    enough = (counts > 0).sum(axis=0) >= 2  # one image says nothing about others
    low_and_high = np.where(enough, bounds, np.nan)
    return Interval(
        _ratio(np.asarray(sums.sum(0)), np.asarray(counts.sum(0))),
        low_and_high[0, ...],
        low_and_high[1, ...],
        level,
    )
