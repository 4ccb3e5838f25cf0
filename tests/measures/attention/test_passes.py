"""Measured while it answers against prompt and answer read again: the same numbers."""

from contextlib import nullcontext

import models
import pytest
import torch
from record_pairs import INTERVENTIONS, assert_equal, conversation, subject_of

import probe
from probe.data.sample import Sample
from probe.measures.attention.measure import measure, measure_samples

TOKENS = 4
QUESTIONS = ("what is in the picture?", "how many circles are there?")
FACTORIES = (*models.FACTORIES, models.llava_mini)


def asked(images=1):
    """Two questions of different lengths, and one without an image."""
    shown = [models.picture(seed, 70, 50) for seed in range(images)]
    pictures = [
        Sample(str(i), tuple(shown) if images > 1 else shown[0], conversation(text, images))
        for i, text in enumerate(QUESTIONS)
    ]
    return [*pictures, Sample("none", None, "where is the red square?")]


def both_ways(subject, samples, **options):
    """The record taken while the model answers, and that of its answers read again."""
    torch.manual_seed(0)
    one = measure_samples(subject, samples, max_new_tokens=TOKENS, **options)
    options = {name: value for name, value in options.items() if name != "do_sample"}
    return one, measure_samples(subject, samples, response=one, **options)


@pytest.mark.parametrize(
    ("factory", "attn"), [*((factory, "sdpa") for factory in FACTORIES), (models.llava15, "eager")]
)
def test_one_pass_equals_two(factory, attn):
    one, two = both_ways(subject_of(factory, attn=attn), asked(), maps=True, types="fine")
    assert one.attrs["passes"] == "one"
    assert_equal(one, two)


def test_several_images_heads_and_contributions():
    subject = subject_of(models.llava_next_vicuna)
    options = {"maps": "heads", "contribution": True, "received_head": True, "rows": "text"}
    one, two = both_ways(subject, asked(images=2)[:2], **options)
    assert one.attrs["passes"] == "one"
    assert_equal(one, two)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_under_interventions_and_reducers(name):
    subject = subject_of(models.llava15)
    with INTERVENTIONS[name](subject):
        one, two = both_ways(subject, asked()[:2])
    assert one.attrs["passes"] == "one"
    assert_equal(one, two)


def test_sampled_answers_and_those_that_end_early():
    subject = subject_of(models.llava15)
    one, two = both_ways(subject, asked(), do_sample=True)
    assert_equal(one, two)
    subject.model.generation_config.eos_token_id = int(one["response_ids"].values[0, 1])
    one, two = both_ways(subject, asked(), do_sample=True)
    lengths = (one["response_ids"].values >= 0).sum(1)
    assert len(set(lengths)) > 1 and one.attrs["passes"] == "one"
    assert_equal(one, two)


def test_what_cannot_be_read_in_one_pass_says_so():
    subject, picture = subject_of(models.llava15), models.picture()
    expected = {
        "two: beams": {"num_beams": 2},
        "two: no cache": {"use_cache": False},
        "two: sinks are found before they are counted": {"sinks": "drop"},
        "two: the prompt does not run at once and alone": {"cache_implementation": "static"},
    }
    for passes, options in expected.items():
        record = measure(subject, picture, QUESTIONS[0], max_new_tokens=3, **options)
        assert record.attrs["passes"] == passes
        if "sinks" not in options:
            assert_equal(record, measure(subject, picture, QUESTIONS[0], response=record))


@pytest.mark.parametrize("factory", [models.llava15, models.llava_mini])
@pytest.mark.parametrize("block", [None, "mask", "FastV"])
def test_logits_of_a_measured_generate_are_bit_identical(factory, block):
    if factory is models.llava_mini and block == "FastV":
        block = "remove"
    subject, seen = subject_of(factory), []
    samples = asked()[:2]
    hook = subject.model.register_forward_hook(lambda _, args, output: seen.append(output.logits))
    with INTERVENTIONS[block](subject) if block else nullcontext():
        rows = [subject.encode(sample.image, sample.question) for sample in samples]
        subject.generate_ids(probe.subject.inputs.collate(rows, side="left"), TOKENS)
        plain = list(seen)
        seen.clear()
        # Where a prefix is shared, logits are those of a forward that shares it in the same way.
        measure_samples(subject, samples, share=False, max_new_tokens=TOKENS, contribution=True)
    hook.remove()
    assert len(seen) == len(plain) == TOKENS
    assert all(map(torch.equal, seen, plain))
