"""How well a number tells two kinds of samples apart: the area under the ROC curve.

    A = P(x_i > x_j) + ½ P(x_i = x_j),     i: a sample with the event, j: one without

1 and 0 tell them apart without a mistake, ½ not at all.

    area = Auroc.of(values, event)                 # values: (sample, case), NaN = missing
    area(np.ones(len(event), dtype=int))           # (case): the estimate
    bootstrap_statistic(area, images, seed=0)      # its interval, images redrawn
    auroc_p(values, event, images)                 # (case): is A other than ½?

The test. With mid-ranks r_i of the values and y_i = 1 for the event, A - ½ is proportional to
U = Σ_i u_i, u_i = (y_i - ȳ)(r_i - r̄). Were events dealt out to samples at random, its variance
would be V = Σ(y_i - ȳ)² Σ(r_i - r̄)² / (n - 1). Samples about one image are not independent, so V
is multiplied by the design effect D, how much larger the sums of images are than those of samples:

    t = U / √(V · max(1, D)),     D = Σ_image (Σ_{i about it} u_i)² ÷ Σ_i u_i²

with Student's t of (images - 1). One question an image: D = 1, the test of Mann and Whitney.

Source: Mann and Whitney 1947; Hanley and McNeil 1982; Kish 1965 (the design effect).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from probe.records.running_bootstrap import Images
from probe.records.significance import student_p


@dataclass(frozen=True)
class Auroc:
    """The area of each case, when each sample counts several times.

    event, other: samples with and without the event. order: for each case, the places in `other` by
    ascending value, NaN at the end. below, up_to: for each case and sample of `event`, how many of
    `other` have a smaller value, and one that is not larger. known, compared: whether a sample of
    `event` has a value, and how many of `other` have one.
    """

    event: Int[np.ndarray, " event"]
    other: Int[np.ndarray, " other"]
    order: Int[np.ndarray, "case other"]
    below: Int[np.ndarray, "case event"]
    up_to: Int[np.ndarray, "case event"]
    known: Bool[np.ndarray, "case event"]
    compared: Int[np.ndarray, " case"]

    @classmethod
    def of(
        cls, values: Float[np.ndarray, "sample case"], event: Bool[np.ndarray, " sample"]
    ) -> "Auroc":
        with_event = np.flatnonzero(event)
        without = np.flatnonzero(~event)
        positive = values[with_event].T
        negative = values[without].T
        order = np.argsort(negative, axis=1, kind="stable")
        ascending = np.take_along_axis(negative, order, 1)
        known = ~np.isnan(positive)
        below = np.zeros(positive.shape, dtype=np.int64)
        up_to = np.zeros(positive.shape, dtype=np.int64)
        for case, (row, found) in enumerate(zip(ascending, positive, strict=True)):
            below[case] = np.searchsorted(row, found, "left")
            up_to[case] = np.searchsorted(row, found, "right")
        compared = (~np.isnan(negative)).sum(1)
        return cls(with_event, without, order, below, up_to, known, compared)

    def __call__(self, times: Int[np.ndarray, " sample"]) -> Float[np.ndarray, " case"]:
        """NaN where no sample with the event, or none without it, counts and has a value.

        >>> values = np.array([[3.0], [1.0], [2.0], [2.0]])
        >>> area = Auroc.of(values, np.array([True, False, False, True]))
        >>> area(np.ones(4, dtype=int)).tolist()
        [0.875]
        """
        weight = times[self.other][self.order]
        counted = np.cumsum(np.pad(weight, ((0, 0), (1, 0))), axis=1)
        pairs_below = np.take_along_axis(counted, self.below, 1)
        pairs_up_to = np.take_along_axis(counted, self.up_to, 1)
        event_weight = np.where(self.known, times[self.event], 0)
        won = (event_weight * (pairs_below + pairs_up_to)).sum(1) / 2
        others = np.take_along_axis(counted, self.compared[:, None], 1)[:, 0]
        pairs = event_weight.sum(1) * others
        nothing = np.full(len(won), np.nan)
        return np.divide(won, pairs, out=nothing, where=pairs > 0)


def auroc_p(
    values: Float[np.ndarray, "sample case"], event: Bool[np.ndarray, " sample"], images: Images
) -> Float[np.ndarray, " case"]:
    """Two-sided p that the area is ½; NaN for a case without two images, or without samples of
    both kinds. NaN values are left out.

    >>> values = np.arange(8.0)[:, None]
    >>> auroc_p(values, values[:, 0] > 3, list("abcdefgh")).round(3).tolist()
    [0.054]
    """
    known = ~np.isnan(values)
    count = known.sum(0)
    ranks = pd.DataFrame(values).rank().to_numpy()
    happened = np.where(known, event[:, None].astype(float), np.nan)
    with np.errstate(invalid="ignore"):
        centred_rank = ranks - np.nansum(ranks, 0) / count
        centred_event = happened - np.nansum(happened, 0) / count
    product = np.where(known, centred_event * centred_rank, 0.0)

    names, image_of = np.unique(np.asarray(images), return_inverse=True)
    shape = (len(names), values.shape[1])
    of_image = np.zeros(shape)
    shown = np.zeros(shape)
    np.add.at(of_image, image_of, product)
    np.add.at(shown, image_of, known)

    spread = np.nansum(centred_event**2, 0) * np.nansum(centred_rank**2, 0)
    at_random = spread / np.maximum(count - 1, 1)
    by_sample = (product**2).sum(0)
    by_image = (of_image**2).sum(0)
    # how much larger the variance is because an image has several samples
    design = np.divide(by_image, by_sample, out=np.ones(shape[1]), where=by_sample > 0)
    error = np.sqrt(at_random * np.maximum(design, 1.0))
    total = np.abs(of_image.sum(0))
    t = np.divide(total, error, out=np.zeros(shape[1]), where=error > 0)

    image_count = (shown > 0).sum(0)
    events = np.nansum(happened, 0)
    is_test = (image_count >= 2) & (events > 0) & (events < count)
    degrees = np.maximum(image_count - 1, 1)
    return np.where(is_test, student_p(t, degrees), np.nan)
