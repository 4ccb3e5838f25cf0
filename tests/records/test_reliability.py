"""Does attention predict being right: on answers whose truth is known, and on none."""

import itertools

import numpy as np
import pytest
from planted_answers import TELLING, planted_answers

import probe
from probe.errors import ProbeError
from probe.records.auroc import Auroc, auroc_p
from probe.records.concat import join, select
from probe.records.reliability import reliability, reliability_table
from probe.records.reliability_outcomes import answers_of
from probe.records.significance import RATE, false_discovery

QUICK = {"draws": 40, "progress": False}


def by_pairs(values, event, times):
    """The area by its definition: every pair, as often as its samples count."""
    won, pairs = 0.0, 0.0
    for i, j in itertools.product(np.flatnonzero(event), np.flatnonzero(~event)):
        if np.isnan(values[i]) or np.isnan(values[j]):
            continue
        weight = times[i] * times[j]
        won += weight * ((values[i] > values[j]) + 0.5 * (values[i] == values[j]))
        pairs += weight
    return won / pairs if pairs else np.nan


def by_curve(values, event):
    """The area as scikit-learn's roc_auc_score takes it: trapezoids below the ROC curve, a point
    for each threshold.
    """
    thresholds = np.r_[np.inf, np.unique(values)[::-1]]
    hits = [(values[event] >= threshold).mean() for threshold in thresholds]
    alarms = [(values[~event] >= threshold).mean() for threshold in thresholds]
    return np.trapezoid(hits, alarms)


@pytest.fixture(scope="module")
def run():
    return planted_answers()


@pytest.fixture(scope="module")
def found(run):
    return reliability(run, **QUICK)


def test_the_area_is_that_of_all_pairs_and_of_the_curve():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, (30, 3)).astype(float)  # many ties
    event = rng.random(30) < 0.4
    estimate = Auroc.of(values, event)(np.ones(30, dtype=int))
    for case in range(3):
        assert estimate[case] == pytest.approx(by_curve(values[:, case], event))
    values[rng.random((30, 3)) < 0.2] = np.nan
    values[:, 2] = np.nan
    times = rng.integers(0, 4, 30)
    area = Auroc.of(values, event)(times)
    expected = [by_pairs(values[:, case], event, times) for case in range(3)]
    np.testing.assert_allclose(area, expected)
    assert np.isnan(area[2])


def test_the_planted_head_comes_first_and_is_significant(found):
    table = reliability_table(found)
    first = table[table["outcome"] == "correct"].iloc[0]
    assert (first["measure"], first["layer"], first["head"]) == ("mass", *TELLING)
    assert first["significant"] and first["auroc"] > 0.8 and first["gain_low"] > 0
    others = table[(table["outcome"] == "correct") & (table["head"] != "all")].iloc[1:]
    assert not others["significant"].any()


def test_numbers_are_those_of_the_plain_computation(run, found):
    right = run["correct"].values == 1
    logprob = np.nansum(run["response_logprob"].values, 1)
    one = found.sel(outcome="correct")
    assert float(one["baseline"]) == pytest.approx(by_curve(logprob, right), abs=1e-6)
    mass = run["llm"]["mass"].sel(query_type="response", key_type="vision").values
    planted = by_curve(mass[:, *TELLING], right)
    at = {"measure": "mass", "layer": TELLING[0]}
    assert float(one["auroc"].sel(head=TELLING[1], **at)) == pytest.approx(planted, abs=1e-6)
    gain = float(one["gain"].sel(head=TELLING[1], **at))
    assert gain == pytest.approx(planted - float(one["baseline"]), abs=1e-6)
    of_layer = by_curve(mass[:, TELLING[0]].mean(-1), right)
    assert float(one["layer_auroc"].sel(at)) == pytest.approx(of_layer, abs=1e-6)
    assert (one["samples"], one["events"], one["images"]) == (120, right.sum(), 40)
    confident = found.sel(outcome="confident")
    assert confident["events"] == (logprob > np.median(logprob)).sum()
    assert np.isnan(confident["baseline"]) and np.isnan(confident["gain"]).all()


def test_random_labels_give_nothing_at_the_stated_rate():
    """200 tries with 12 heads, with images whose questions and attention go together in half."""
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(20), 3)
    any_found = 0
    for number in range(200):
        together = number % 2
        event = rng.random(20)[images] * together + rng.random(60) < 0.4
        values = rng.normal(size=(20, 12))[images] * together + rng.normal(size=(60, 12))
        q = false_discovery(auroc_p(values, event, images))
        any_found += bool((q <= RATE).any())
    assert any_found <= 200 * RATE


def test_samples_of_one_image_are_one_piece_of_evidence():
    """Every question asked six times is no more evidence than once."""
    rng = np.random.default_rng(1)
    values, event = rng.normal(size=(30, 5)), rng.random(30) < 0.5
    values[:, 0] += event
    once = auroc_p(values, event, np.arange(30))
    often = auroc_p(values.repeat(6, 0), event.repeat(6), np.arange(30).repeat(6))
    np.testing.assert_allclose(often, once, atol=0.02)
    alone = auroc_p(values.repeat(6, 0), event.repeat(6), np.arange(180))
    assert alone[0] < 1e-6 < once[0]


def test_heads_without_values_ties_and_one_sided_answers():
    values = np.random.default_rng(0).normal(size=(20, 3))
    values[:, 1], values[:, 2] = np.nan, 7.0
    event = np.arange(20) % 3 == 0
    p = auroc_p(values, event, np.arange(20))
    assert np.isnan(p[1]) and p[2] == pytest.approx(1)
    assert np.isnan(auroc_p(values, event, np.zeros(20))).all()
    assert np.isnan(auroc_p(values, np.ones(20, bool), np.arange(20))).all()
    run = planted_answers(20)
    run["llm"]["mass"][:, 0, 1] = np.nan
    one = reliability(run, outcomes=["correct"], **QUICK).sel(outcome="correct", measure="mass")
    missing = np.argwhere(np.isnan(one["auroc"].values)).tolist()
    assert missing == [[0, 1]] and np.isfinite(one["layer_auroc"]).all()
    assert np.isnan(one["q"].values[0, 1])


def test_answers_of_yes_where_there_is_nothing_are_hallucinations():
    found = reliability(planted_answers(gold="No"), outcomes=["hallucination"], **QUICK)
    one = found.sel(outcome="hallucination")
    right = reliability(planted_answers(gold="No"), outcomes=["correct"], **QUICK).sel(
        outcome="correct"
    )
    assert one["events"] == right["samples"] - right["events"]
    np.testing.assert_allclose(one["auroc"], 1 - right["auroc"], atol=1e-6)
    np.testing.assert_allclose(one["baseline"], right["baseline"], atol=1e-6)
    assert (one["queries"], right["queries"]) == ("instruction", "response")
    without = reliability(planted_answers(20), **QUICK)
    assert without["outcome"].values.tolist() == ["correct", "confident"]
    assert without.attrs["left_out"] == "hallucination: 0 hallucinated, 0 answered no"


def test_confidence_is_of_the_whole_answer_its_mean_or_its_first_token(run):
    each = run["response_logprob"].values.astype(float)
    expected = {"sum": np.nansum(each, 1), "mean": np.nanmean(each, 1), "first": each[:, 0]}
    for name, logprob in expected.items():
        np.testing.assert_allclose(answers_of(run, name).logprob, logprob)


def test_the_dataset_is_a_small_file_and_a_run_may_be_one(run, found, tmp_path):
    file = probe.save_record(run, tmp_path / "run")
    again = probe.reliability(file, **QUICK)
    assert again.attrs == found.attrs
    np.testing.assert_array_equal(again["auroc_low"], found["auroc_low"])
    back = probe.open_record(probe.save_record(found, tmp_path / "found"))
    np.testing.assert_array_equal(back["q"], found["q"])
    assert back["gain"].attrs["units"] == "1"


def without(run, name):
    run.dataset = run.to_dataset().drop_vars(name)
    return run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: without(run, "correct"), "no benchmark scored"),
        (lambda run: without(run, "response_logprob"), "one made before runs kept"),
        (lambda run: run["llm"].to_dataset(), "a Dataset"),
        (lambda _: planted_answers(40, wrong=3), "117 right, 3 wrong"),
        (lambda _: planted_answers(40, wrong=120), "0 right, 120 wrong"),
        (lambda _: planted_answers(1, 60), "at least 2 images"),
    ],
)
def test_mistakes_are_one_line(run, change, said):
    with pytest.raises(ProbeError, match=said):
        reliability(change(run.copy(deep=True)), **QUICK)


def test_a_run_that_was_made_in_part_before_is_refused(run):
    before = select(run, range(7))
    for name in ("response_logprob", "gold"):
        before = without(before, name)
    old = join([before, select(run, range(7, 120))])  # as a run that an earlier version began
    assert old["gold"].values[[0, 7]].tolist() == ["", "red"]
    with pytest.raises(ProbeError, match="7 of 120 samples made before"):
        reliability(old, **QUICK)
    for wrong in ({"measures": ["contribution"]}, {"outcomes": ["luck"]}, {"key_type": "sky"}):
        with pytest.raises(ProbeError, match=r"expected .* of "):
            reliability(run, **QUICK | wrong)
    with pytest.raises(ProbeError, match="what probe"):
        reliability_table(run["llm"].to_dataset())
