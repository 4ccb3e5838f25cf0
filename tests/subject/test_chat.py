"""A conversation with its cache says what the whole one says without; and where a cache would not
do, it has none.
"""

import models
import pytest
import torch
from prompts import six_layers
from transformers import LogitsProcessor

import probe
from probe.errors import ProbeError
from probe.hooks.model_structure import stacks
from probe.interventions import drop_vision
from probe.reducers import FastV, Grid, PyramidDrop, SparseVLM
from tests.families.models import FAMILIES

QUESTIONS = ["what is in the picture?", "is it red?", "and how many circles are there?"]


@pytest.fixture
def subject():
    return six_layers()


class Prefills:
    """Counts the tokens that a model's LLM is fed at once, and the runs of its encoder."""

    def __init__(self, model):
        self.fed, self.encoded, self.model = [], 0, model

    def __enter__(self):
        found = stacks(self.model)
        self.hooks = [
            found["llm"].layers[0].register_forward_pre_hook(self._feed, with_kwargs=True),
            found["vision"].layers[0].register_forward_pre_hook(self._encode),
        ]
        return self

    def _feed(self, layer, args, kwargs):
        count = (args[0] if args else kwargs["hidden_states"]).shape[1]
        self.fed += [count] * (count > 1)

    def _encode(self, *_):
        self.encoded += 1

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


def same(chat, subject, question, **generate):
    """Asks, and compares with the whole conversation asked at once."""
    before = list(chat.messages)
    answer = chat.ask(question, max_new_tokens=4, **generate)
    assert chat.messages[-2]["content"][-1]["text"] == question
    assert answer == subject.answer(chat.image, chat.messages[:-1], max_new_tokens=4, **generate)
    assert chat.messages[: len(before)] == before


@pytest.mark.parametrize("make", [models.llava15, models.llava_next_vicuna, models.llava_llama3])
def test_it_says_what_the_whole_conversation_says_and_runs_the_image_once(make):
    model, processor = make(layers=3, side=24)
    subject = probe.load(model, processor=processor)
    chat = subject.chat(models.picture(0))
    for turn, question in enumerate(QUESTIONS):
        with Prefills(model) as prefills:
            answer = chat.ask(question, max_new_tokens=4)
        inputs = subject.encode(chat.image, chat.messages[:-1])
        prompt = inputs["input_ids"].shape[1]
        assert answer == subject.answer(chat.image, chat.messages[:-1], max_new_tokens=4)
        assert prefills.encoded == (turn == 0)
        assert chat.reused + sum(prefills.fed) == prompt
        assert not turn or chat.reused > int(inputs.types.vision[0].nonzero()[0].max())


def test_another_question_about_the_image_reuses_it(subject):
    chat = subject.chat([models.picture(0), models.picture(1)])
    for question in QUESTIONS:
        same(chat, subject, question)
        chat.restart()
    assert chat.reused > 18


@pytest.mark.parametrize("reducer", [Grid(0.5), None])
def test_what_does_not_look_at_the_question_keeps_the_cache(subject, reducer):
    block = (
        drop_vision(subject, (2, 3), mode="remove")
        if reducer is None
        else probe.reduced(subject, reducer)
    )
    with block:
        chat = subject.chat(models.picture(0))
        same(chat, subject, QUESTIONS[0])
        assert chat.reused == 0
        same(chat, subject, QUESTIONS[1])
        assert chat.reused > 0
    same(chat, subject, QUESTIONS[2])
    assert chat.reused == 0, "what was computed under a reducer is of no use without it"
    same(chat, subject, QUESTIONS[0])
    assert chat.reused > 0


@pytest.mark.parametrize(
    "reducer",
    [FastV(2, 0.4), PyramidDrop((1, 3), (0.7, 0.3)), SparseVLM(64, recycle=True, layers=(0, 1, 3))],
)
def test_what_chooses_by_the_question_begins_anew(subject, reducer):
    with probe.reduced(subject, reducer) as stages:
        chat = subject.chat(models.picture(0))
        for question in QUESTIONS[:2]:
            same(chat, subject, question)
            assert chat.reused == 0

        kept = subject.chat(models.picture(0), keep="always")
        same(kept, subject, QUESTIONS[0])
        chosen = [stage.kept.clone() for stage in stages]
        kept.restart()
        kept.ask(QUESTIONS[2], max_new_tokens=4)
        assert kept.reused > 9
        assert all(torch.equal(a, stage.kept) for a, stage in zip(chosen, stages, strict=True)), (
            "nothing was ranked"
        )


@torch.no_grad()
def test_the_cache_of_another_question_answers_about_the_tokens_that_it_left(subject):
    """Against the second prompt with the survivors of the first: what `keep="always"` is."""
    first, second = (subject.encode(models.picture(0), question) for question in QUESTIONS[::2])
    with probe.reduced(subject, FastV(2, 0.4)) as stages:
        subject.model(**first)
        gone = (first["input_ids"] == subject.model.config.image_token_id) & ~stages[0].kept
        chat = subject.chat(models.picture(0), keep="always")
        chat.ask(QUESTIONS[0], max_new_tokens=4)
        chat.restart()
        with Logits(subject.model) as last:
            chat.ask(QUESTIONS[2], max_new_tokens=1)
    width = second["input_ids"].shape[1]
    gone = torch.nn.functional.pad(gone, (0, max(0, width - gone.shape[1])))[:, :width]
    types = second.as_types({"gone": gone.numpy()}).types
    with probe.knockout(subject, types.names, "gone", range(2, 6), types=types):
        theirs = subject.model(**second).logits[:, -1]
    torch.testing.assert_close(last.logits[0], theirs, atol=3e-5, rtol=0)


class Logits:
    """The last token's of each forward."""

    def __init__(self, model):
        self.model, self.logits = model, []

    def __enter__(self):
        self.hook = self.model.register_forward_hook(
            lambda model, args, out: self.logits.append(out.logits[:, -1])
        )
        return self

    def __exit__(self, *_):
        self.hook.remove()


def test_never_beams_and_sampling(subject):
    chat = subject.chat(models.picture(0), keep="never")
    for question in QUESTIONS[:2]:
        same(chat, subject, question)
        assert chat.reused == 0
    chat = subject.chat(models.picture(0))
    same(chat, subject, QUESTIONS[0], num_beams=2)
    same(chat, subject, QUESTIONS[1])
    assert chat.reused == 0
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = list(chat.messages)
        sampled = chat.ask(QUESTIONS[2], max_new_tokens=4, do_sample=True)
        assert chat.reused > 0
        torch.manual_seed(seed)
        assert sampled == subject.answer(
            chat.image, chat.messages[:-1], max_new_tokens=4, do_sample=True
        )
        chat.messages = before


def test_a_window_that_has_forgotten_and_attention_that_looks_ahead_begin_anew(
    subject, monkeypatch
):
    model, processor = models.llava_next_mistral(layers=3, sliding_window=24)
    windowed = probe.load(model, processor=processor)
    chat = windowed.chat(models.picture(0))
    for question in QUESTIONS[:2]:
        same(chat, windowed, question)
        assert chat.reused == 0
    chat = subject.chat(models.picture(0))
    monkeypatch.setattr(chat, "_looks_ahead", True)
    for question in QUESTIONS[:2]:
        same(chat, subject, question)
        assert chat.reused == 0


@pytest.mark.parametrize("name", ["mllama", "idefics", "blip2", "qwen3_5"])
def test_where_the_cache_is_not_all_that_a_question_needs_it_begins_anew(name):
    """Words that read the image by cross-attention, a forward without a cache, a state."""
    subject = probe.load(*FAMILIES[name]())
    chat = subject.chat(models.picture(0))
    for question in QUESTIONS[:2]:
        same(chat, subject, question)
        assert chat.reused == 0


class _EndsSoon(LogitsProcessor):
    """Has each answer end with its second word."""

    def __init__(self, prompt: int, end: int):
        self.length, self.end = prompt + 1, end

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] == self.length:
            scores = scores.clone()
            scores[:, self.end] = scores.max() + 1
        return scores


def test_words_that_were_generated_after_the_end_are_forgotten(subject):
    """Where the model's own config names no end, `generate` goes on after the tokenizer's."""
    subject.model.generation_config.eos_token_id = None
    chat = subject.chat(models.picture(0))
    prompt = subject.encode(chat.image, QUESTIONS[0])["input_ids"].shape[1]
    chat.ask(QUESTIONS[0], 6, logits_processor=[_EndsSoon(prompt, subject.vocabulary.end_ids[0])])
    same(chat, subject, QUESTIONS[1])
    assert chat.reused > prompt - 1
    chat.restart()
    same(chat, subject, QUESTIONS[2])
    assert chat.reused


CACHES = {"cache_implementation": "static", "use_cache": False}


@pytest.mark.parametrize("name", CACHES)
def test_what_a_checkpoint_says_of_caches_is_not_of_the_chats_own(subject, name):
    """It was refused beside a static cache, and answered wrongly beside none."""
    setattr(subject.model.generation_config, name, CACHES[name])
    chat = subject.chat(models.picture(0))
    for question in QUESTIONS[:2]:
        same(chat, subject, question)
    assert chat.reused > 0
    same(chat, subject, QUESTIONS[2], use_cache=False)
    assert chat.reused == 0


def test_strings_that_end_an_answer_are_looked_for_by_the_tokenizer(subject):
    answer = subject.answer(models.picture(0), QUESTIONS[0], 6)
    for options in ({"stop_strings": [answer[0]]}, {}):
        words = subject.answer(models.picture(0), QUESTIONS[0], 6, **options)
        assert len(words) < len(answer)
        assert answer[0] in words
        subject.model.generation_config.stop_strings = [answer[0]]


def test_llava_mini_talks():
    subject = probe.load("tiny-llava-mini")
    chat = subject.chat(models.picture(0))
    for question in QUESTIONS[:2]:
        same(chat, subject, question)
        assert chat.reused == 0


def test_an_interrupted_question_leaves_nothing_wrong(subject):
    chat = subject.chat(models.picture(0))
    same(chat, subject, QUESTIONS[0])

    def fail(*_):
        raise KeyboardInterrupt

    hook = stacks(subject.model)["llm"].layers[3].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        chat.ask(QUESTIONS[1])
    hook.remove()
    assert len(chat.messages) == 2
    same(chat, subject, QUESTIONS[1])


def test_mistakes_are_told_in_a_line(subject):
    with pytest.raises(
        ProbeError, match=r"chat: expected keep='exact', 'always', 'never', got 'sometimes'"
    ):
        subject.chat(models.picture(0), keep="sometimes")
    with pytest.raises(ProbeError, match=r"options that model\.generate takes"):
        subject.chat(models.picture(0)).ask("why?", wrong=1)
    words = subject.chat(None)
    same(words, subject, QUESTIONS[0])
    same(words, subject, QUESTIONS[1])
    assert words.reused > 0
