"""Rank correlations against what they must be; attention beside attribution on known and on random
models.
"""

import models
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import probe
from probe.errors import ProbeError
from probe.measures.attribution import attribute
from probe.measures.attribution.weight_randomisation import randomised
from probe.models.planted import planted
from probe.plots.attention_agreement import verdict
from probe.records.rank_agreement import MEASURES, above_floor, rank_agreement, spearman

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
