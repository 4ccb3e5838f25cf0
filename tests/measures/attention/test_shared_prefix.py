"""Questions about one image on one prefix against each question alone."""

from contextlib import ExitStack

import models
import numpy as np
import pytest
import torch
from record_pairs import INTERVENTIONS, assert_equal, conversation, subject_of

from probe.data.sample import Sample
from probe.measures.attention.measure import measure, measure_samples
from probe.measures.attention.shared_passes import SHARED
from probe.reducers import VisionZip
from probe.subject.image_questions import ImageQuestions
from probe.subject.prefix_cache import RecentlyUsed

OPTIONS = {"max_new_tokens": 4, "progress": False}


def asked(images=1):
    """Questions of different lengths about two sets of images, in turn, one about a third."""
    sets = [[models.picture(3 * at + i, 70, 50) for i in range(images)] for at in range(3)]
    texts = ("what is in it?", "how many circles are there?", "where?", "is it red?", "what is it?")
    return [
        Sample(f"{at}", tuple(sets[of]), conversation(text, images))
        for at, (of, text) in enumerate(zip((0, 1, 0, 1, 2), texts, strict=True))
    ]


def against_each_alone(subject, samples, **options):
    """The record on shared prefixes, compared with one that shares nothing."""
    shared = measure_samples(subject, samples, **OPTIONS, **options)
    alone = measure_samples(subject, samples, share=False, batch_tokens=1, **OPTIONS, **options)
    assert alone.attrs["prefix"] == "each question alone"
    assert shared["sample"].values.tolist() == [sample.id for sample in samples]
    assert_equal(shared, alone)
    return shared


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (models.llava15, {"types": "fine", "maps": True}),
        (models.llava_llama3, {"attn": "eager"}),
        (models.llava_next_vicuna, {"rows": "text", "contribution": True}),
    ],
)
def test_shared_equals_alone(factory, options):
    subject = subject_of(factory, **{k: options.pop(k) for k in ("attn",) if k in options})
    record = against_each_alone(subject, asked(), **options)
    assert record.attrs["prefix"] == f"{SHARED}, each question alone"


def test_several_images_and_given_responses():
    subject = subject_of(models.llava15)
    samples = asked(images=2)
    responses = ["a red circle", "two", "it", "a circle is red", "no"]
    record = against_each_alone(subject, samples, response=responses, received_head=True)
    assert record["response"].values.tolist() == responses


def test_a_sliding_window_that_ends_in_the_image():
    subject = subject_of(models.llava_next_mistral)
    samples = [Sample(str(i), models.picture(0, 70, 50), "is it red?") for i in range(2)]
    record = against_each_alone(subject, samples)
    assert record.attrs["prefix"] == SHARED


@pytest.mark.parametrize("name", ["mask", "knock-out", "FastV", "VisionZip", "LLaVA-Mini"])
def test_under_interventions_and_reducers(name):
    """What the encoder is reduced by is shared; where sharing would not be exact, the record says
    so.
    """
    if name == "LLaVA-Mini":
        record = against_each_alone(subject_of(models.llava_mini), asked()[:3:2])
    else:
        subject = subject_of(models.llava15)
        with INTERVENTIONS[name](subject):
            record = against_each_alone(subject, asked()[:3:2])
    reasons = {
        "mask": "the model is under drop_vision(layers=0-1, mode=mask)",
        "knock-out": "the model is under knockout(layers=1, text to vision)",
        "FastV": "FastV(layer=1, keep=0.25) chooses vision tokens by the question",
        "LLaVA-Mini": "the text reads the image before the LLM",
    }
    said = f"each question alone: {reasons[name]}" if name in reasons else SHARED
    assert record.attrs["prefix"].replace(", ", " ") == said.replace(", ", " ")


def test_each_image_is_computed_once_and_kept_within_a_budget():
    subject, samples = subject_of(models.llava15), asked()
    runs = []
    subject.model.get_encoder(modality="image").register_forward_hook(lambda *_: runs.append(1))
    questions = ImageQuestions(subject)
    measure_samples(subject, samples[:4], share=questions, **OPTIONS)
    assert questions.cache.computed == 2
    assert len(runs) == 3  # one of them tries sharing out
    measure_samples(subject, samples[:4], share=questions, **OPTIONS)
    assert questions.cache.computed == 2 and len(runs) == 3
    measure(subject, models.picture(0, 70, 50), "again?", share=questions, max_new_tokens=2)
    assert questions.cache.computed == 2  # one question, on what was kept
    kept = RecentlyUsed(10, len)
    for name in ("aaaa", "bbbbb", "cccc"):
        kept.get(name, lambda name=name: name)
    assert kept.peek("aaaa") is None and kept.peek("bbbbb") == "bbbbb"
    assert kept.get("long", lambda: "d" * 20) == "d" * 20 and kept.peek("cccc") is None


def test_answers_in_a_batch_equal_each_alone():
    subject = subject_of(models.llava15)
    rows = [
        subject.encode(models.picture(), text) for text in ("is it red?", "how many are there?")
    ]
    with VisionZip(4, 2)(subject):
        reduced = [subject.encode(models.picture(), text) for text in ("is it red?", "how many?")]
        for together in (rows, reduced):
            questions = ImageQuestions(subject)
            if together is reduced:
                assert questions.reason(together[0]) == ""
                answers = questions.generate(together, 4)
                alone = [subject.generate_ids(row, 4)[0] for row in together]
                assert all(map(np.array_equal, answers, alone))
    questions = ImageQuestions(subject)
    assert questions.reason(rows[0], {"prompt_lookup_num_tokens": 2}) == "prompt_lookup_num_tokens="
    answers = questions.generate(rows, 4)
    assert all(map(np.array_equal, answers, [subject.generate_ids(row, 4)[0] for row in rows]))


@pytest.mark.parametrize("factory", [models.llava15, models.llava_next_mistral])
@pytest.mark.parametrize("reduced", [False, True])
def test_logits_are_bit_identical_to_an_unmeasured_generate_that_shares(factory, reduced):
    """The question twice: under a sliding window, a batch has rows of one length."""
    subject = subject_of(factory)
    picture = models.picture(0, 70, 50)
    samples = [Sample(name, picture, "is it red?") for name in "ab"]
    seen = []
    with ExitStack() as blocks:
        if reduced:
            blocks.enter_context(VisionZip(4, 2)(subject))
        rows = [subject.encode(picture, sample.question) for sample in samples]
        head = subject.model.get_output_embeddings()
        handle = head.register_forward_hook(lambda module, args, output: seen.append(output))
        blocks.callback(handle.remove)
        questions = ImageQuestions(subject)
        assert questions.reason(rows[0]) == ""
        seen.clear()
        answers = questions.generate(rows, OPTIONS["max_new_tokens"])
        plain = list(seen)
        record = measure_samples(subject, samples, **OPTIONS)
    assert record.attrs["prefix"] == SHARED and record.attrs["passes"] == "one"
    assert len(plain) > 1
    for measured, unmeasured in zip(seen[-len(plain) :], plain, strict=True):
        assert torch.equal(measured, unmeasured)
    for ids, row in zip(answers, record["response_ids"].values, strict=True):
        assert ids.tolist() == row[row >= 0].tolist()
