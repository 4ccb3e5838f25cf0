"""A subject as lmms-eval's model: its answers, and a text that tells interventions apart.

lmms-eval can't be imported here (it needs 2 GB of packages), so a double of its interface stands
in: what `lmms_eval/api/model.py` of 0.7.3 defines and its evaluator uses.
"""

import re
from abc import ABC, abstractmethod
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import probe
from probe.errors import ProbeError
from probe.evaluation.lmms_eval_model import lmms_eval_model
from probe.models.tiny.questions import sample_image
from probe.reducers import FastV


class Lmms(ABC):
    """The double of `lmms_eval.api.model.lmms`."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    @property
    def rank(self):
        return self._rank

    @abstractmethod
    def loglikelihood(self, requests): ...

    @abstractmethod
    def generate_until(self, requests): ...

    @abstractmethod
    def generate_until_multi_round(self, requests): ...


@pytest.fixture(scope="module")
def subject():
    return probe.load("tiny-llava")


def asked(subject, *under, context=None, **arguments) -> tuple[list[str], str]:
    """lmms-eval's answer and probe's own to one question."""
    image, question, _ = sample_image(seed=0)
    model = lmms_eval_model(subject, *under, base=Lmms)
    model.task_dict = {"toy": {"test": [{"picture": image}]}}
    args = (context or question, arguments, lambda doc: [doc["picture"]], 0, "toy", "test")
    return model.generate_until([SimpleNamespace(args=args)] * 2), question


def test_answers_are_the_subjects_own_inside_and_outside_of_blocks(subject):
    image, question, _ = sample_image(seed=0)
    before = subject.answer(image, question)
    found, _ = asked(subject, max_new_tokens=32)
    assert found == [before, before]
    with FastV(1, 0.1)(subject):
        reduced = subject.answer(image, question)
    assert asked(subject, FastV(1, 0.1), max_new_tokens=32)[0] == [reduced, reduced]
    blind = asked(subject, lambda s: probe.drop_vision(s, layers=range(8)), max_new_tokens=32)[0]
    with probe.drop_vision(subject, layers=range(8)):
        assert blind[0] == subject.answer(image, question)
    assert subject.answer(image, question) == before


def test_what_a_task_asks_for_is_done(subject):
    whole, question = asked(subject)
    first = whole[0].split()[0]
    assert asked(subject, until=[" "], max_new_tokens=32)[0][0] == first
    assert asked(subject, max_new_tokens=1)[0][0] == first
    marked = asked(subject, context=f"<image>\n{question}", temperature=0, top_p=None)[0]
    assert marked == whole


def test_the_text_of_a_model_tells_what_is_done_to_it(subject):
    def text(*under):
        return repr(lmms_eval_model(subject, *under, base=Lmms))

    texts = [
        text(),
        text(FastV(2, 0.5)),
        text(FastV(2, 0.25)),
        text(lambda s: probe.drop_vision(s, layers=[0])),
        text(lambda s: probe.drop_vision(s, layers=[1])),
    ]
    assert len(set(texts)) == 5
    assert text(FastV(2, 0.5)) == texts[1]
    assert text(lambda s: probe.drop_vision(s, layers=[0])) == texts[3]
    assert all(re.fullmatch(r"probe\(tiny-llava, .+, [0-9a-f]{16}\)", each) for each in texts)


def test_what_it_cannot_do_is_told_in_a_line(subject, monkeypatch):
    model = lmms_eval_model(subject, base=Lmms)
    for name in ("loglikelihood", "generate_until_multi_round"):
        with pytest.raises(ProbeError, match=f"requests of generate_until, got {name}"):
            getattr(model, name)([])
    with pytest.raises(ProbeError, match="blocks that say what they do"):
        lmms_eval_model(subject, lambda _: nullcontext(), base=Lmms)
    monkeypatch.setattr("probe.evaluation.lmms_eval_model.find_spec", lambda _: None)
    with pytest.raises(ProbeError, match=r"the package lmms_eval, got none; pip install"):
        lmms_eval_model(subject)
