"""Tests of many cases at once: a p-value for each, and the false discovery rate among those that
are called significant.

    p = paired_p(effect, images)             # (case): is the mean over images other than 0?
    q = false_discovery(p)                   # (case): significant at rate 0.05 where q <= 0.05

Questions about one image are not independent, so images are the units: each counts with the mean of
its questions, and Student's t is that of the image means. Where all images agree to the bit, p is 0
for an effect and 1 for none.

Source: Benjamini and Hochberg 1995 (the false discovery rate).
"""

import math

import numpy as np
from jaxtyping import Float

from probe.records.bootstrap import Images

RATE = 0.05  # of false discoveries among all discoveries
NODES = 200  # of the quadrature


def paired_p(
    difference: Float[np.ndarray, "sample *case"], images: Images
) -> Float[np.ndarray, "*case"]:
    """Two-sided p that the mean difference over images is 0; NaN with fewer than two images. NaN
    differences are left out.

    >>> difference = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    >>> [round(float(p), 4) for p in paired_p(difference, ["a", "b", "c"])]
    [0.0742, 1.0]
    """
    names, image_of = np.unique(np.asarray(images), return_inverse=True)
    shape = (len(names), *difference.shape[1:])
    sums = np.zeros(shape)
    counts = np.zeros(shape)
    known = ~np.isnan(difference)
    np.add.at(sums, image_of, np.where(known, difference, 0.0))
    np.add.at(counts, image_of, known)
    has_value = counts > 0
    means = np.divide(sums, counts, out=np.zeros(shape), where=has_value)

    image_count = has_value.sum(0)
    divisor = np.maximum(image_count, 1)
    centre = means.sum(0) / divisor
    deviations = np.where(has_value, means - centre, 0.0)
    degrees = np.maximum(image_count - 1, 1)
    variance = (deviations**2).sum(0) / degrees
    error = np.sqrt(variance / divisor)
    without_spread = np.where(centre == 0, 0.0, np.inf)  # no effect, or the same on all images
    t = np.divide(np.abs(centre), error, out=without_spread, where=error > 0)
    return np.where(image_count < 2, np.nan, student_p(t, degrees))


def student_p(
    t: Float[np.ndarray, "*case"], degrees: np.ndarray | int
) -> Float[np.ndarray, "*case"]:
    """Two-sided p of Student's t of 0 or more, with these degrees of freedom.

        p = ∫_θ^{π/2} cos(φ)^{ν - 1} dφ ÷ ∫_0^{π/2} cos(φ)^{ν - 1} dφ,     tan θ = t / √ν

    >>> [round(float(p), 4) for p in student_p(np.array([0.0, 2.0, np.inf]), 10)]
    [1.0, 0.0734, 0.0]
    """
    t, freedom = np.broadcast_arrays(np.asarray(t, dtype=float), np.asarray(degrees, dtype=float))
    theta = np.arctan2(t, np.sqrt(freedom))
    # cos^(ν-1) has fallen to nothing, compared with its value at θ, 12 / √ν further on
    length = np.minimum(np.pi / 2 - theta, 12 / np.sqrt(freedom))
    # The integral from θ on by Gauss and Legendre, whose places lie between -1 and 1 ...
    place, weight = np.polynomial.legendre.leggauss(NODES)
    angle = theta[..., None] + length[..., None] * (place + 1) / 2
    log_cosine = np.log(np.cos(angle).clip(1e-300))
    power = np.exp((freedom[..., None] - 1) * log_cosine)
    from_theta = power @ weight * length / 2
    # ... and the one from 0 on, √π/2 · Γ(ν/2) ÷ Γ((ν + 1)/2)
    log_gamma = np.vectorize(math.lgamma, otypes=[float])
    log_ratio = log_gamma(freedom / 2) - log_gamma((freedom + 1) / 2)
    from_zero = math.sqrt(math.pi) / 2 * np.exp(log_ratio)
    return np.minimum(from_theta / from_zero, 1.0)


def false_discovery(p: Float[np.ndarray, "*case"]) -> Float[np.ndarray, "*case"]:
    """The smallest false discovery rate at which each case is significant. NaN cases do not count
    as tests.

    >>> [round(float(q), 3) for q in false_discovery(np.array([0.01, 0.02, 0.9, np.nan]))]
    [0.03, 0.03, 0.9, nan]
    """
    flat = np.ravel(p).astype(float)
    tested = np.flatnonzero(~np.isnan(flat))
    order = tested[np.argsort(-flat[tested], kind="stable")]  # the largest first
    count = len(tested)
    scaled = flat[order] * count / np.arange(count, 0, -1)
    adjusted = np.full_like(flat, np.nan)
    adjusted[order] = np.minimum.accumulate(np.minimum(scaled, 1.0))
    return adjusted.reshape(np.shape(p))
