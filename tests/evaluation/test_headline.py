"""The official number of a benchmark, when samples count several times: what the scorer says of
samples repeated.
"""

# pyright: reportArgumentType=false

import dataclasses

import numpy as np
import pytest
import xarray as xr
from planted_sweeps import ALWAYS, planted_sweep

from probe.data.sample import Sample
from probe.evaluation.benchmarks import named
from probe.evaluation.headline import Headline, columns

CASES = [*ALWAYS, "1"]


def question(i, kind, unit, gold, choices=()):
    return Sample(
        f"{i}",
        "p.png",
        "?",
        choices,
        gold,
        {"image": f"p{unit}", "kind": kind, "unit": unit, "base": True},
    )


def pope(rng):
    kinds = ("random", "popular", "adversarial")
    return [
        question(i, kinds[i % 3], f"{i // 6}", ("yes", "no")[rng.integers(2)]) for i in range(48)
    ], "yes no"


def mme(rng):
    from probe.evaluation.benchmarks.mme import PERCEPTION

    pairs = [(i, j) for i in range(40) for j in (0, 1)]
    samples = [question(2 * i + j, PERCEPTION[i % 10], f"{i}", ("yes", "no")[j]) for i, j in pairs]
    return samples[:-1], "yes no maybe"  # of the last image one question is missing


def mmbench(rng):
    return [
        question(i, "x", f"{i // 3}", "AB"[rng.integers(2)], ("left", "right")) for i in range(48)
    ], "A B"


@pytest.fixture(params=["pope", "mme", "mmbench"])
def answered(request):
    """Samples, what is said of each in every case, and the table of a run."""
    rng = np.random.default_rng(0)
    samples, words = {"pope": pope, "mme": mme, "mmbench": mmbench}[request.param](rng)
    said = np.array(
        [[rng.choice([*words.split(), s.answer, s.answer]) for _ in CASES] for s in samples], object
    )
    score = named(request.param).score
    correct = np.array(
        [[score(text, s) for text in row] for row, s in zip(said, samples, strict=True)], np.float32
    )
    about = {"image": "image", "kind": "kind", "unit": "unit"}
    values = {
        name: ("sample", np.array([s.meta[key] for s in samples], object))
        for name, key in about.items()
    }
    values |= {
        "gold": ("sample", np.array([s.answer for s in samples], object)),
        "correct": (("sample", "case"), correct),
    }
    return samples, said, xr.Dataset(values, {"case": CASES}, {"benchmark": request.param})


def official(samples, said, case, times):
    """The scorer's number of samples that stand so often in the file, each time as another
    image's.
    """
    repeated, predictions = [], {}
    for sample, text, count in zip(samples, said[:, case], times, strict=True):
        for copy in range(count):
            meta = dict(sample.meta) | {"unit": f"{sample.meta['unit']}-{copy}"}
            one = dataclasses.replace(sample, id=f"{sample.id}-{copy}", meta=meta)
            repeated.append(one)
            predictions[one.id] = text
    return named_of(samples).summarise(repeated, predictions)


def named_of(samples):
    kinds = {sample.meta["kind"] for sample in samples}
    return named("pope" if "random" in kinds else "mmbench" if "x" in kinds else "mme")


def test_it_is_the_scorers_number_of_repeated_samples(answered):
    samples, said, table = answered
    headline, rng = Headline(table), np.random.default_rng(1)
    _, image = np.unique(table["image"].values.astype(str), return_inverse=True)
    for times in (np.ones(len(samples), int), rng.integers(0, 3, image.max() + 1)[image]):
        expected = [
            official(samples, said, case, times)[headline.name] for case in range(len(CASES))
        ]
        np.testing.assert_allclose(headline(times), expected)


def test_differences_are_paired_and_bands_are_wider(answered):
    _, _, table = answered
    headline = Headline(table)
    same = table.assign(correct=table["correct"].isel(case=[0, 0, 0, 0]).drop_vars("case"))
    found = columns(same, seed=0)
    assert (found["official_difference_low"] == 0).all() and (
        found["official_difference_high"] == 0
    ).all()
    assert (found[f"official_{headline.name}_low"] < found[f"official_{headline.name}"]).all()
    alone, together = headline.interval(0), headline.curve(range(len(CASES)), 0)
    assert (together.estimate == alone.estimate).all()
    assert (together.high - together.low > 0.9 * (alone.high - alone.low)).all()
    assert headline.curve([1, 3], 0, paired=True).estimate == pytest.approx(
        alone.estimate[[1, 3]] - alone.estimate[0]
    )


def test_without_a_number_of_its_own_it_is_the_mean():
    table = planted_sweep(needed=(1,))
    for attrs in ({}, {"benchmark": "gqa"}):
        headline = Headline(table.assign_attrs(attrs))
        assert (headline.name, headline.label, headline.top, headline.is_mean) == (
            "accuracy",
            "accuracy (%)",
            100,
            True,
        )
        found = dict(zip(table["case"].values, headline(np.ones(16, int)), strict=True))
        assert (found["untouched"], found["2"], found["3"]) == (100, 25, 100)
        assert (headline.interval(0).estimate == list(found.values())).all()


def test_a_ratio_to_gpt4_counts_judged_answers_only():
    correct = np.array([[0.5, 0.6], [0.7, np.nan]], np.float32)
    reference = np.array([[1.0, 1.0], [0.5, 0.8]], np.float32)
    table = xr.Dataset(
        {
            "correct": (("sample", "case"), correct),
            "reference": (("sample", "case"), reference),
            "image": ("sample", ["a", "b"]),
        },
        attrs={"benchmark": "llava_w"},
    )
    np.testing.assert_allclose(Headline(table)(np.array([1, 1])), [100 * 1.2 / 1.5, 60], rtol=1e-6)
    np.testing.assert_allclose(Headline(table)(np.array([3, 0])), [50, 60], rtol=1e-6)
