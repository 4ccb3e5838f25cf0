"""Rank correlations against what they must be; attention beside attribution on known and on random
models.
"""

import models
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import probe
from probe.errors import ProbeError
from probe.measures.attribution import attribute
from probe.measures.attribution.weight_randomisation import randomised
from probe.models.planted import planted
from probe.plots.attention_agreement import verdict
from probe.records.rank_agreement import (
    MEASURES,
    _grid_moves,
    _image_of_regions,
    _shuffles,
    above_floor,
    agreeing_layers,
    can_tell,
    rank_agreement,
    spearman,
)

VALUES = arrays(float, 7, elements=st.integers(-3, 3).map(float))


@given(VALUES, VALUES)
def test_spearman_is_that_of_pandas(first, second):
    ranks = [pd.Series(values).rank().to_numpy() for values in (first, second)]
    constant = any(np.ptp(rank) == 0 for rank in ranks)
    found = float(spearman(first, second))
    assert (
        np.isnan(found) if constant else found == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-9)
    )


def found_on(subject, image, question, **options):
    return attribute(subject, image, question, words=False, progress=False, **options)


@pytest.fixture(scope="module")
def known():
    return planted((2, 4), (14, 15, 20, 21))


def test_attention_agrees_in_the_layers_that_read_and_nowhere_else(known):
    subject = probe.load(known.model, processor=known.processor)
    found = found_on(subject, known.image("red", 1), known.question)
    table = rank_agreement({"ablation": found, "again": found})
    for measure in MEASURES:
        assert above_floor(table, "ablation", measure) == [2, 4]
    assert float(table["ceiling"].sel(reference="ablation", other="again")) == pytest.approx(1)
    assert verdict(table).startswith("Yes in layers 3, 5")


@pytest.mark.parametrize("seed", range(3))
def test_on_random_weights_agreement_is_noise_and_the_verdict_says_so(seed):
    model, processor = models.llava15(side=40, seed=seed)
    subject = probe.load(model, processor=processor)
    table = rank_agreement(
        {"ablation": found_on(subject, models.picture(seed), "where is it?", max_new_tokens=4)}
    )
    assert "noise" in verdict(table)


def test_shuffled_weights_are_another_model_and_leave_the_first_alone(known):
    subject = probe.load(known.model, processor=known.processor)
    control = randomised(subject)
    assert subject.answer(known.image("red"), known.question) == "red"
    assert control.answer(known.image("red"), known.question) != "red"
    assert "shuffled" in control.provenance()["model"]
    for own, theirs in zip(subject.model.parameters(), control.model.parameters(), strict=True):
        np.testing.assert_array_equal(
            np.sort(own.detach().ravel()), np.sort(theirs.detach().ravel())
        )


def test_one_region_ranks_nothing():
    model, processor = models.llava15(side=8)
    subject = probe.load(model, processor=processor)
    assert "cannot be said of 1 region" in verdict(
        rank_agreement({"a": found_on(subject, models.picture(), "where?")})
    )


def test_what_cannot_be_compared_is_told(known):
    subject = probe.load(known.model, processor=known.processor)
    words = attribute(subject, known.image("red"), known.question, over="words", progress=False)
    whole, without = (
        found_on(subject, known.image("red"), known.question, over="grid", attention=there)
        for there in (True, False)
    )
    patches = found_on(subject, known.image("red"), known.question)
    for wrong, told in (
        ({"a": words}, "over regions"),
        ({"a": without}, "with mass"),
        ({"a": whole, "b": patches}, "the same regions"),
    ):
        with pytest.raises(ProbeError, match=told):
            rank_agreement(wrong)


def table_of(best: float, floor: float, *ceilings: float) -> xr.Dataset:
    """A table of agreement with these numbers, on one layer."""
    others = ["a", *(f"other {i}" for i in range(len(ceilings)))]
    measured = {"by_layer": (("reference", "measure", "layer"), np.full((1, 4, 1), best))}
    known = {"floor": ("reference", [floor]), "ceiling": (("reference", "other"), [[1, *ceilings]])}
    coords = {"reference": ["a"], "other": others, "measure": list(MEASURES), "layer": [0]}
    return xr.Dataset(measured | known, coords, {"regions": 36})


@pytest.mark.parametrize(
    ("best", "floor", "ceilings", "expected"),
    [
        (0.65, 0.68, [0.68], "Can't tell: best correlation 0.65, floor 0.68, ceiling 0.68"),
        (0.20, 0.62, [0.31], "Can't tell: best correlation 0.20, floor 0.62, ceiling 0.31"),
        (0.20, 0.62, [0.31, 0.80], "No: agreement is noise"),
        (0.70, 0.62, [0.31], "Can't tell: best correlation 0.70"),
        (0.70, 0.62, [0.63], "Yes in layer 1"),
        (0.70, 0.62, [], "Yes in layer 1"),
        (0.20, 0.62, [0.63], "No: agreement is noise"),
        (0.61, 0.62, [0.63], "Can't tell: best correlation 0.61"),
        (0.50, 1.00, [], "Can't tell: best correlation 0.50, floor 1.00, ceiling 1 (no second"),
        (0.20, 0.62, [], "No: agreement is noise"),
    ],
)
def test_no_verdict_without_power(best, floor, ceilings, expected):
    table = table_of(best, floor, *ceilings)
    assert verdict(table).startswith(expected)
    assert can_tell(table, "a") == (floor < max(ceilings, default=1))


def test_a_layer_agrees_with_every_attribution_or_not_at_all():
    """By layer: with both, with the first only, with each by another measure."""
    first = np.array([[0.8, 0.8, 0.8], [0.8, 0.8, 0.1]])  # (measure, layer)
    second = np.array([[0.7, 0.1, 0.1], [0.1, 0.1, 0.7]])
    by_layer = np.full((2, 4, 3), np.nan)
    by_layer[:, :2] = np.stack([first, second])
    table = xr.Dataset(
        {
            "by_layer": (("reference", "measure", "layer"), by_layer),
            "floor": ("reference", [0.5, 0.6]),
            "ceiling": (("reference", "other"), np.full((2, 2), 0.9)),
        },
        {
            "reference": ["a", "b"],
            "other": ["a", "b"],
            "measure": list(MEASURES),
            "layer": range(3),
        },
        {"regions": 36},
    )
    assert agreeing_layers(table) == [0]
    assert verdict(table).startswith("Yes in layer 1,")
    assert verdict(table.isel(layer=[1, 2])).startswith(
        "Can't tell: best correlation 0.80, floor 0.50, ceiling 0.90; it agrees with a above"
    )


def test_one_attribution_alone_needs_every_measure():
    table = table_of(0.7, 0.62)
    assert agreeing_layers(table) == [0]
    table["by_layer"][0, 3, 0] = 0.5  # contribution
    assert agreeing_layers(table) == []
    assert verdict(table) == (
        "Can't tell: best correlation 0.70, floor 0.62, ceiling 1 (no second method); some "
        "measures of attention agree and others do not; add a second attribution."
    )


def test_the_floor_is_the_highest_that_misplaced_regions_reach(on_two_images):
    generator = np.random.default_rng(0)
    count, layers = on_two_images.sizes["feature"], on_two_images.sizes["layer"]
    maps, attributed = generator.normal(size=(4, layers, count)), generator.normal(size=count)
    table = rank_agreement({"a": with_maps(on_two_images, maps, attributed)})
    orders = [_shuffles(_image_of_regions(on_two_images), 0), _grid_moves(on_two_images, 0)]
    misplaced = attributed[np.concatenate(orders)]
    expected = max(spearman(one, misplaced).max() for one in maps.reshape(-1, count))
    assert float(table["floor"][0]) == pytest.approx(expected, abs=0.02)  # small ones are ties


@pytest.fixture(scope="module")
def on_two_images():
    model, processor = models.llava15(side=48)
    subject = probe.load(model, processor=processor)
    return found_on(subject, [models.picture(0), models.picture(1)], "where?", max_new_tokens=2)


def test_floors_of_several_images_keep_each_region_in_its_image(on_two_images):
    regions = on_two_images
    image_of = _image_of_regions(regions)
    count = regions.sizes["feature"]
    side = round((count // 2) ** 0.5)
    assert image_of.tolist() == [0] * (count // 2) + [1] * (count // 2)
    moves = _grid_moves(regions, 0)
    for orders in (_shuffles(image_of, 0), moves):
        assert (np.sort(orders, axis=1) == np.arange(count)).all()
        assert (image_of[orders] == image_of).all()
        assert (orders != np.arange(count)).any(1).all()
    row, column = np.divmod(moves[:, : count // 2], side)
    horizontal = (np.diff(column.reshape(-1, side, side), axis=2) % side).reshape(len(moves), -1)
    assert set(np.unique(horizontal)) <= {1, side - 1}  # neighbours stay neighbours
    assert (row.reshape(-1, side, side) == row.reshape(-1, side, side)[:, :, :1]).all()


def with_maps(like, maps, attributions):
    """`like` with other maps (measure, layer, region) and attributions (region)."""
    heads = np.broadcast_to(maps[:, :, None], (*maps.shape[:2], like.sizes["head"], maps.shape[2]))
    values = {name: (like[name].dims, one) for name, one in zip(MEASURES, heads, strict=True)}
    return like.assign(values | {"attribution": (like["attribution"].dims, attributions)})


def smooth(noise, images, side):
    """Noise (..., region) in which patches resemble their neighbours."""
    grid = noise.reshape(*noise.shape[:-1], images, side, side)
    for axis in (-1, -2):
        grid = grid + np.roll(grid, 1, axis) + np.roll(grid, -1, axis)
    return grid.reshape(noise.shape)


def test_smooth_noise_on_two_images_rarely_passes_and_truth_does(on_two_images):
    count, layers = on_two_images.sizes["feature"], on_two_images.sizes["layer"]
    side = round((count // 2) ** 0.5)
    false, true, tries = 0, 0, 60
    for seed in range(tries):
        generator = np.random.default_rng(seed)
        maps = smooth(generator.normal(size=(4, layers, count)), 2, side)
        attributed = smooth(generator.normal(size=count), 2, side)
        noise = rank_agreement({"a": with_maps(on_two_images, maps, attributed)})
        maps[0, 1] = attributed + 0.3 * attributed.std() * generator.normal(size=count)
        planted_in = rank_agreement({"a": with_maps(on_two_images, maps, attributed)})
        false += verdict(noise).startswith("Yes")
        true += 1 in above_floor(planted_in, "a", "mass")
    assert false <= 0.02 * tries
    assert true >= 0.95 * tries
