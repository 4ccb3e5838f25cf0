"""Every head ablated at once is every head ablated alone; planted heads come first, and a model
that has learned nothing has none.
"""

import models
import numpy as np
import pytest
import torch

import probe
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.interventions import ablate_heads
from probe.interventions.sweep.sample_prompts import SamplePrompts
from probe.models.planted import planted
from probe.records.head_effects import head_effects
from probe.records.significance import false_discovery, paired_p, student_p
from tests.families.models import FAMILIES as OTHERS

FAMILIES = {
    "1.5": models.llava15,
    "next": models.llava_next_vicuna,
    "window": models.llava_next_mistral,
    "mini": models.llava_mini,
}


def loaded(name, attn="sdpa"):
    model, processor = FAMILIES[name](layers=3, attn=attn)
    return probe.load(model, processor=processor)


def asked(images=2):
    """Two questions about each image, with gold answers of several tokens."""
    words = [("what is in the picture?", "a red circle"), ("where?", "above it")]
    return [
        Sample(f"{i}-{j}", models.picture(i), question, answer=answer)
        for i in range(images)
        for j, (question, answer) in enumerate(words)
    ]


def alone(subject, sample, layer, head, mode, stack="llm"):
    """The gold answer's log-probability in a forward under the block."""
    prompts = SamplePrompts.of(subject, sample, None)
    inputs, gold = prompts.with_gold(prompts.inputs), prompts.gold
    with ablate_heads(subject, {layer: head}, mode, stack=stack), torch.no_grad():
        logits = subject.model(**inputs).logits[0, -len(gold) :]
    return float(logits.float().log_softmax(-1).gather(-1, gold[:, None]).sum())


def wide(*values):
    """A case that the default run leaves out."""
    return pytest.param(*values, marks=pytest.mark.wide)


CASES = [
    ("1.5", "eager", "no_vision"),
    ("next", "sdpa", "zero"),
    ("mini", "sdpa", "uniform"),
    wide("1.5", "sdpa", "mean"),
    wide("window", "eager", "uniform"),
    wide("mini", "sdpa", "zero"),
    *(wide("1.5", "sdpa", mode) for mode in ("zero", "uniform", "no_vision")),
    wide("next", "eager", "uniform"),
    wide("window", "sdpa", "no_vision"),
    wide("mini", "eager", "mean"),
]


@pytest.mark.parametrize(("family", "attn", "mode"), CASES)
def test_a_sweep_is_every_case_alone(family, attn, mode):
    subject, samples = loaded(family, attn), asked()
    some = {0: [1], 1: [0, 3], 2: [2]}
    table = probe.head_sweep(subject, samples, some, mode, control=False, progress=False)
    assert table.attrs["sharing"] == "exact"
    for number in (0, 3):  # of either image
        for layer, heads in some.items():
            for head in heads:
                expected = alone(subject, samples[number], layer, head, mode)
                found = float(table["gold_logprob"][number, layer, head])
                assert found == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))
    assert np.isnan(table["gold_logprob"].values[:, 0, 0]).all(), "left out"


@pytest.mark.parametrize(
    ("name", "some", "mode", "sharing"),
    [
        ("qwen2_vl", {0: [1], 2: [3]}, "zero", "exact"),  # positions in three axes
        ("qwen3_5", {1: [0], 3: [1]}, "mean", "exact"),  # gated parts, layers without attention
        ("paligemma", {1: [2]}, "uniform", "its logits are not those of its layers alone"),
    ],
)
def test_questions_of_other_families_are_each_alone(name, some, mode, sharing):
    subject, samples = probe.load(*OTHERS[name]()), asked(1)
    table = probe.head_sweep(subject, samples, some, mode, control=False, progress=False)
    assert table.attrs["sharing"] == sharing
    for number, sample in enumerate(samples):
        for layer, (head,) in some.items():
            expected = alone(subject, sample, layer, head, mode)
            found = float(table["gold_logprob"][number, layer, head])
            assert found == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


def test_two_images_and_a_question_about_none():
    subject = loaded("window")  # grouped queries, and a window that the second image goes beyond
    both = Sample("both", (models.picture(0), models.picture(1)), "which?", answer="a red one")
    none = Sample("none", None, "what is red?", answer="a circle")
    for sample in (both, none):
        table = probe.head_sweep(subject, sample, {1: [0, 3]}, control=False, progress=False)
        for head in (0, 3):
            expected = alone(subject, sample, 1, head, "zero")
            found = float(table["gold_logprob"][0, 1, head])
            assert found == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


def test_prefusion_runs_each_case_alone():
    subject, samples = loaded("mini"), asked(1)[:1]
    table = probe.head_sweep(subject, samples, {1: [2]}, stack="prefusion", progress=False)
    found = float(table["gold_logprob"].sel(layer=1, head=2).squeeze())
    assert found == pytest.approx(alone(subject, samples[0], 1, 2, "zero", "prefusion"), abs=1e-5)


def planted_samples(known, count=6):
    return [
        Sample(f"{c}{seed}", known.image(c, seed), known.question, answer=c)
        for seed in range(count // 3)
        for c in ("red", "green", "blue")
    ]


@pytest.mark.parametrize("mode", ["no_vision", *map(wide, ("zero", "mean", "uniform"))])
def test_planted_heads_come_first(mode, tmp_path):
    known = planted(read_layers=(2, 4))
    subject = probe.load(known.model, processor=known.processor)
    table = probe.head_sweep(subject, planted_samples(known, 3), mode=mode, progress=False)
    effects = head_effects(table)
    first = effects.iloc[:2]
    assert {(r.layer, r.head) for r in first.itertuples()} == {(2, 0), (4, 0)}
    assert set(effects.index[effects["significant"]]) == {0, 1}
    assert (first["effect_low"] > 1).all() and (first["accuracy_change"] == -100).all()
    assert (effects["effect"].abs() < 1e-4).iloc[2:].all()
    probe.save_record(table, tmp_path / "heads.zarr")
    assert head_effects(probe.open_record(tmp_path / "heads.zarr")).equals(effects)


def test_tests_of_many_cases():
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(30), 2)
    nothing = rng.standard_normal((60, 400))
    p = paired_p(nothing, images)
    assert 0.02 < (p < 0.05).mean() < 0.09
    discoveries = [
        (false_discovery(paired_p(rng.standard_normal((30, 20)), np.arange(30))) <= 0.05).any()
        for _ in range(200)
    ]
    assert np.mean(discoveries) < 0.1
    assert false_discovery(np.array([0.04, np.nan, 0.01])).tolist()[::2] == [0.04, 0.02]
    # against tabulated quantiles of Student's t
    assert student_p(np.array([12.706, 2.228, 1.984]), np.array([1, 10, 100])) == pytest.approx(
        [0.05, 0.05, 0.05], abs=2e-4
    )
    assert np.isnan(paired_p(np.ones((2, 1)), ["a", "a"])).all()


def test_mistakes_are_told():
    subject, samples = loaded("1.5"), asked(1)
    for arguments, message in (
        ((subject, []), "at least one sample"),
        ((subject, samples, "some"), "heads as {layer: heads} or all"),
        ((subject, samples, {7: [0]}), "layers from 0 to 2"),
        ((subject, samples, "all", "none"), "a mode of zero"),
        ((subject, [Sample("a", models.picture(0), "what?")]), "'a' without"),
    ):
        with pytest.raises(ProbeError, match=message):
            probe.head_sweep(*arguments, progress=False)
    refused = pytest.raises(ProbeError, match="an untouched model, got ablate_heads")
    with refused, ablate_heads(subject, {0: 0}):
        probe.head_sweep(subject, samples, progress=False)
