"""Intervals: known answers, coverage on made-up data, and the mistakes they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import ProbeError
from probe.records.bootstrap import (
    band,
    bootstrap,
    bootstrap_statistic,
    paired,
    wilson,
    wilson_bounds,
)
from probe.records.running_bootstrap import RunningBootstrap


def questions(rng, images=60, each=8, cases=1, rate=0.6, spread=0.3):
    """Right or wrong answers whose rate differs from image to image, and the image of each."""
    rates = np.clip(rate + spread * rng.standard_normal((images, 1, 1)), 0, 1)
    right = (rng.random((images, each, cases)) < rates).astype(float)
    return right.reshape(images * each, cases), np.repeat(
        [f"image-{i}" for i in range(images)], each
    )


def test_the_estimate_is_the_mean_and_the_bounds_lie_around_it():
    right, images = questions(np.random.default_rng(0), cases=3)
    interval = bootstrap(right, images, seed=0)
    np.testing.assert_allclose(interval.estimate, right.mean(0))
    assert (interval.low < interval.estimate).all()
    assert (interval.estimate < interval.high).all()


def test_the_seed_decides_and_blocks_do_not(monkeypatch):
    right, images = questions(np.random.default_rng(0))
    first = bootstrap(right, images, seed=3)
    for module in ("bootstrap", "running_bootstrap"):
        monkeypatch.setattr(f"probe.records.{module}.BLOCK", 1000)
    second = bootstrap(right, images, seed=3)
    np.testing.assert_array_equal(first.low, second.low)
    assert bootstrap(right, images, seed=4).high != first.high


def test_samples_that_come_some_at_a_time_have_the_interval_of_all_together():
    right, images = questions(np.random.default_rng(0), cases=3)
    right[5:, 1] = np.nan  # one image has a value
    weights = 1 + np.arange(right.size, dtype=float).reshape(right.shape)
    whole = bootstrap(right, images, seed=3, weights=weights)
    running = RunningBootstrap(images, seed=3)
    for start in range(0, len(right), 7):
        part = slice(start, start + 7)
        running.add(right[part], weights[part])
    pieces = running.interval()
    for name in ("estimate", "low", "high"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), rtol=1e-12)
    assert np.isnan(whole.low).tolist() == [False, True, False]


def test_images_are_drawn_and_not_questions():
    """Ten copies of each question say no more than one: the interval must not shrink."""
    rng = np.random.default_rng(0)
    right = (rng.random(200) < 0.5).astype(float)
    images = np.array([f"p{i}" for i in range(200)])
    once, tenfold = (
        bootstrap(right, images, seed=0),
        bootstrap(right.repeat(10), images.repeat(10), seed=0),
    )
    np.testing.assert_allclose([once.low, once.high], [tenfold.low, tenfold.high])
    naive = bootstrap(right.repeat(10), [str(i) for i in range(2000)], seed=0)
    assert (naive.high - naive.low) < 0.4 * (once.high - once.low)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        right, images = questions(rng, spread=0.2)
        interval = bootstrap(right[:, 0], images, seed=seed, draws=400)
        hits += interval.low <= 0.5989 <= interval.high  # the mean of the clipped rates
    assert 0.90 <= hits / 200 <= 0.99


def test_a_band_covers_the_whole_curve_as_often_as_it_says():
    rng, whole, pointwise = np.random.default_rng(0), 0, 0
    for seed in range(200):
        right, images = questions(rng, cases=8, spread=0.0)
        wide, narrow = (
            band(right, images, seed=seed, draws=400),
            bootstrap(right, images, seed=seed, draws=400),
        )
        whole += ((wide.low <= 0.6) & (wide.high >= 0.6)).all()
        pointwise += ((narrow.low <= 0.6) & (narrow.high >= 0.6)).all()
    assert 0.90 <= whole / 200 <= 0.99
    assert pointwise / 200 < 0.8  # what a band is for


def test_paired_differences_see_what_separate_intervals_cannot():
    rng = np.random.default_rng(0)
    untouched, images = questions(rng)
    untouched = untouched[:, 0]
    harmed = untouched * (rng.random(len(untouched)) > 0.05)  # one right answer in twenty is lost
    difference = paired(harmed, untouched, images, seed=0)
    assert difference.high < 0
    assert bootstrap(harmed, images, seed=0).high > bootstrap(untouched, images, seed=0).low
    same = paired(untouched, untouched, images, seed=0)
    assert same.estimate == same.low == same.high == 0


def test_missing_values_are_left_out_of_both_sides():
    values = np.array([[1.0, np.nan], [0.0, 1.0], [1.0, np.nan]])
    interval = bootstrap(values, ["a", "b", "c"], seed=0)
    np.testing.assert_allclose(interval.estimate, [2 / 3, 1.0])
    assert np.isnan(interval.low).tolist() == [False, True]  # one image says nothing about others
    difference = paired(values, np.array([1.0, np.nan, 0.0]), ["a", "b", "c"], seed=0)
    np.testing.assert_allclose(difference.estimate, [0.5, np.nan])


def test_a_point_without_spread_has_no_width_and_leaves_the_others_alone():
    rng = np.random.default_rng(0)
    right, images = questions(rng, cases=2)
    with_constant = np.column_stack([right, np.ones(len(right))])
    two, three = band(right, images, seed=0), band(with_constant, images, seed=0)
    np.testing.assert_allclose(three.low[:2], two.low)
    assert three.low[2] == three.high[2] == 1.0
    flat = band(np.ones((4, 2)), ["a", "a", "b", "b"], seed=0)
    np.testing.assert_array_equal(flat.low, flat.high)


def test_any_statistic_can_be_drawn():
    right, images = questions(np.random.default_rng(0))
    right = right[:, 0]
    mean = bootstrap_statistic(
        lambda times: float(np.average(right, weights=times)), images, seed=0
    )
    direct = bootstrap(right, images, seed=0)
    assert mean.estimate == direct.estimate
    np.testing.assert_allclose([mean.low, mean.high], [direct.low, direct.high], atol=0.02)
    alone = bootstrap_statistic(lambda times: 1.0, ["a", "a"], seed=0)
    assert np.isnan(alone.low)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        (0, 10, (0.0, 0.2775)),  # Wilson's score interval, worked by hand
        (5, 10, (0.2366, 0.7634)),
        (10, 10, (0.7225, 1.0)),
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, table I, method 3
        (15, 148, (0.0624, 0.1605)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_bounds(successes, trials, expected):
    np.testing.assert_allclose(wilson_bounds(successes, trials), expected, atol=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_bounds_enclose_the_share_and_mirror(trials, data):
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_bounds(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    np.testing.assert_allclose(
        (1 - high, 1 - low), wilson_bounds(trials - successes, trials), atol=1e-12
    )


def test_wilson_is_refused_where_questions_share_images():
    interval = wilson(np.array([1.0, 0.0, np.nan]), ["a", "b", "b"])
    assert interval.estimate == 0.5
    with pytest.raises(
        ProbeError, match="one question an image, got 3 questions on 2 images; use bootstrap"
    ):
        wilson(np.array([True, False, True]), ["a", "b", "b"])
    with pytest.raises(ProbeError, match=r"values of 0 and 1, got 0\.3"):
        wilson(np.array([1.0, 0.3]), ["a", "b"])
    assert np.isnan(wilson_bounds(0, 0)[0])


def test_lengths_must_agree():
    with pytest.raises(ProbeError, match="got 3 samples, 2 images"):
        bootstrap(np.zeros(3), ["a", "b"], seed=0)
    with pytest.raises(ProbeError, match="got 0 samples"):
        bootstrap(np.zeros(0), [], seed=0)


def test_weights_are_those_of_the_mean():
    values, weights = np.array([1.0, 3.0, np.nan]), np.array([3.0, 1.0, 100.0])
    interval = bootstrap(values, np.array([0, 1, 1]), seed=0, weights=weights)
    assert [interval.estimate, interval.low, interval.high] == [1.5, 1.0, 3.0]
    right, images = questions(np.random.default_rng(0), cases=2)
    equal = bootstrap(right, images, seed=0, weights=np.full_like(right, 7.0))
    plain = bootstrap(right, images, seed=0)
    np.testing.assert_allclose([equal.low, equal.high], [plain.low, plain.high])


def test_draws_without_a_value_are_left_out():
    values = np.full((40, 2), np.nan)
    values[:, 0] = np.arange(40)
    values[:3, 1] = [0.0, 1.0, 2.0]  # three of forty images: 5 % of the draws have none of them
    interval = bootstrap(values, np.arange(40), seed=0)
    assert 0 <= interval.low[1] < 1 < interval.high[1] <= 2
    assert np.isfinite([interval.low, interval.high]).all()
