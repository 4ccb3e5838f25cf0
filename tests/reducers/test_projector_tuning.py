"""Tuning the projector under a reducer: what learns, from what, with how many tokens; and what
stays as it was.
"""

import copy
from functools import cache

import pytest
import torch
from torch.nn.functional import cross_entropy

import probe
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.evaluation.benchmarks import named
from probe.reducers import FastV, VisionZip
from probe.reducers.projector_tuning import AnswerCollator, tune

ZIP = VisionZip(3, 1)
FAST = {
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 6,
    "disable_tqdm": True,
    "report_to": "none",
    "logging_steps": 1,
}


@cache
def shipped():
    return probe.load("tiny-llava")


def subject():
    own = shipped()
    return probe.load(copy.deepcopy(own.model), processor=own.processor)


@cache
def samples():
    return named("shapes").read(questions=6, seed=1).samples


def weights(of):
    return {name: parameter.detach().clone() for name, parameter in of.model.named_parameters()}


def loss(of, *reducers):
    with probe.reduced(of, *reducers), torch.no_grad():
        return float(of.model(**AnswerCollator(of)(samples())).loss)


def told(labels):
    """What a row of labels says, which ends with the end of the turn."""
    tokenizer, ids = shipped().processor.tokenizer, labels[labels != -100]
    assert int(ids[-1]) == tokenizer.eos_token_id
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A subject after three steps, the weights it had before, the tokens that the projector was
    given, the folder.
    """
    own, folder = subject(), tmp_path_factory.mktemp("tuned")
    before, given = weights(own), []
    hook = own.model.model.multi_modal_projector.register_forward_hook(
        lambda m, args, out: given.append(out)
    )
    tune(own, samples(), folder, ZIP, batch=6, max_steps=3, **FAST)
    hook.remove()
    return own, before, given, folder


def test_only_the_projector_learns(tuned):
    own, before, _, _ = tuned
    changed = {name for name, value in weights(own).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "multi_modal_projector" in name}
    assert loss(own, ZIP) < 0.8 * loss(shipped(), ZIP)


def test_the_reducer_is_at_work_while_it_learns(tuned):
    _, _, given, _ = tuned
    learned = [
        tokens for tokens in given if tokens.requires_grad and tokens.shape[1] > 1
    ]  # the others are stand-ins
    assert len(learned) == 3 and all(tokens.shape[:2] == (1, 6 * 4) for tokens in learned)


def test_nothing_else_is_left_behind(tuned):
    own, _, _, folder = tuned
    assert not own.model.training and all(
        p.requires_grad and p.grad is None for p in own.model.parameters()
    )
    assert own.model.config.to_dict() == shipped().model.config.to_dict()
    assert own.model.generation_config.to_dict() == shipped().model.generation_config.to_dict()
    assert own.encode(samples()[0].image, "Is there a red circle?").types.vision.sum() == 36
    again = probe.load(folder)
    assert loss(again, ZIP) == pytest.approx(loss(own, ZIP), abs=1e-6)
    assert not list(folder.glob("*.bin"))


def test_learned_are_the_answers_and_their_ends():
    own = shipped()
    with probe.reduced(own, ZIP):
        batch = AnswerCollator(own)(samples())
    assert (batch["input_ids"] == own.model.config.image_token_id).sum(1).tolist() == [4] * 6
    for sample, row in zip(samples(), batch["labels"], strict=True):
        assert told(row) == sample.answer
    logits = own.model(
        **AnswerCollator(own)(samples()[:1])
    ).logits  # without a reducer: one row, by hand
    labels = AnswerCollator(own)(samples()[:1])["labels"]
    expected = cross_entropy(logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(own.model(**AnswerCollator(own)(samples()[:1])).loss, expected)


def test_a_conversation_ends_with_what_is_learned():
    said = ["Is there a red circle?", "no", "How many circles are there?", "two"]
    talk = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": words}]}
        for i, words in enumerate(said)
    ]
    talk[0]["content"].insert(0, {"type": "image"})
    row = AnswerCollator(shipped())([Sample("1", samples()[0].image, talk)])["labels"][0]
    assert told(row) == "two"


def test_a_run_that_was_stopped_goes_on(tuned, tmp_path):
    own, _, _, _ = tuned
    tune(subject(), samples(), tmp_path, ZIP, batch=6, max_steps=2, save_steps=2, **FAST)
    again = tune(subject(), samples(), tmp_path, ZIP, batch=6, max_steps=3, **FAST)
    expected = weights(own)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())


def test_inside_the_llm(tmp_path):
    own = subject()
    tune(own, samples(), tmp_path, FastV(2, 0.2), batch=6, max_steps=1, **FAST)
    assert loss(own, FastV(2, 0.2)) < loss(shipped(), FastV(2, 0.2))


@pytest.mark.parametrize(
    ("given", "options", "told"),
    [
        ((), {}, "expected samples with images, got none"),
        ((Sample("1", None, "Hello", answer="hi"),), {}, "got one without"),
        ("no answer", {}, "expected an answer in words, got None"),
        ("all", {"batch": 7}, "expected a batch that 6 rows at once divide, got 7"),
    ],
)
def test_what_cannot_be_learned_from_is_one_line(given, options, told, tmp_path):
    bare = tuple(Sample(s.id, s.image, s.question) for s in samples())
    given = (
        {"no answer": bare, "all": samples()}.get(given, given) if isinstance(given, str) else given
    )
    own = subject()
    with pytest.raises(ProbeError, match=told) as error:
        tune(own, given, tmp_path, ZIP, **{"batch": 6, "max_steps": 1} | FAST | options)
    assert "\n" not in str(error.value)
    assert all(parameter.requires_grad for parameter in own.model.parameters())
