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
    known = ~np.isnan(difference)
    sums, counts = (np.zeros((len(names), *difference.shape[1:])) for _ in range(2))
    np.add.at(sums, image_of, np.where(known, difference, 0.0))
    np.add.at(counts, image_of, known)
    has_value = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=has_value)
    units = has_value.sum(0)
    degrees = np.maximum(units - 1, 1)
    centre = means.sum(0) / np.maximum(units, 1)
    spread = (np.where(has_value, means - centre, 0.0) ** 2).sum(0) / degrees
    error = np.sqrt(spread / np.maximum(units, 1))
    agree = np.where(centre == 0, 0.0, np.inf)  # no spread: an effect on all images, or none
    t = np.divide(np.abs(centre), error, out=agree, where=error > 0)
    return np.where(units < 2, np.nan, student_p(t, degrees))


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
    place, weight = np.polynomial.legendre.leggauss(NODES)
    angle = theta[..., None] + length[..., None] * (place + 1) / 2
    cosine = np.cos(angle).clip(1e-300)
    inside = np.exp((freedom[..., None] - 1) * np.log(cosine)) @ weight * length / 2
    log_gamma = np.vectorize(math.lgamma, otypes=[float])
    whole = math.sqrt(math.pi) / 2 * np.exp(log_gamma(freedom / 2) - log_gamma((freedom + 1) / 2))
    return np.minimum(inside / whole, 1.0)


def false_discovery(p: Float[np.ndarray, "*case"]) -> Float[np.ndarray, "*case"]:
    """The smallest false discovery rate at which each case is significant. NaN cases are no tests.

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
