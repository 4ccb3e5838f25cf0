import logging

import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.utils import logging as transformers_logging

from probe.data.token_types import FINE, PAPER
from probe.errors import ProbeError
from probe.subject.image_questions import ImageQuestions
from probe.subject.inputs import collate
from probe.subject.loading import load

IMAGE = {"type": "image"}


def subject_of(factory=models.llava15, **overrides):
    model, processor = factory(**overrides)
    return load(model, processor=processor)


def said(subject, inputs, name):
    """The text of a type, special tokens too."""
    return subject.processor.tokenizer.decode(
        inputs["input_ids"][0][torch.from_numpy(inputs.types.mask(name)[0])]
    )


@pytest.mark.parametrize("factory", models.FACTORIES)
def test_what_is_encoded_is_what_the_processor_encodes(factory):
    subject = subject_of(factory)
    pictures = [models.picture(0), models.picture(1, 80, 20)]
    conversation = [
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "which is red?"}, IMAGE]}
    ]
    inputs = subject.encode(pictures, conversation)
    prompt = subject.processor.apply_chat_template(conversation, add_generation_prompt=True)
    plain = subject.processor(text=prompt, images=pictures, return_tensors="pt")
    assert inputs.prompt == [prompt]
    assert set(inputs) == set(plain)
    for name in plain:
        torch.testing.assert_close(inputs[name], plain[name], atol=0, rtol=0)
    vision = inputs["input_ids"] == subject.model.config.image_token_id
    np.testing.assert_array_equal(inputs.types.mask("vision"), vision.numpy())
    assert len(inputs.grid[0]) == vision.sum()
    assert len(inputs.encoder_grid[0]) % 16 == 0
    assert inputs.images[0][1].size == (80, 20)


@pytest.mark.parametrize("factory", models.FACTORIES)
def test_words_given_as_response_are_response_and_are_closed(factory):
    subject = subject_of(factory)
    inputs = subject.encode(models.picture(), "is it red?", response="yes it is", types="fine")
    assert said(subject, inputs, "response").strip() == "yes it is"
    assert inputs["input_ids"][0, -1] == subject.processor.tokenizer.eos_token_id
    assert inputs.types.is_query[0].tolist().count(False) == 1
    assert not inputs.types.is_query[0, -1]
    assert inputs.response == ["yes it is"]
    conversation = [
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "is it red?"}]},
        {"role": "assistant", "content": "yes it is"},
    ]
    same = subject.encode(models.picture(), conversation, types="fine")
    assert same["input_ids"].tolist() == inputs["input_ids"].tolist()
    np.testing.assert_array_equal(same.types.ids, inputs.types.ids)


@pytest.mark.parametrize("factory", models.FACTORIES)
def test_a_generated_answer_encoded_again_is_itself(factory):
    subject = subject_of(factory)
    prompt = subject.encode(models.picture(), "what is in the picture?")
    (ids,) = subject.generate_ids(prompt, 6)
    answered = subject.encode(models.picture(), "what is in the picture?", ids)
    assert answered["input_ids"][0].tolist() == [*prompt["input_ids"][0].tolist(), *ids.tolist()]
    with torch.no_grad():
        logits = subject.model(**answered).logits[0]
    start = prompt["input_ids"].shape[1] - 1
    assert (
        logits[start:-1].argmax(-1).tolist() == ids.tolist()
    )  # greedy: each row predicts what followed


@pytest.mark.parametrize("factory", models.FACTORIES)
def test_a_padded_batch_generates_what_its_rows_do(factory):
    subject = subject_of(factory)
    rows = [
        subject.encode(models.picture(0), "why?"),
        subject.encode(None, "what is in the picture?"),
    ]
    together = subject.generate_ids(collate(rows), 5)
    for ids, row in zip(together, rows, strict=True):
        assert ids.tolist() == subject.generate_ids(row, 5)[0].tolist()


OF_THE_PROMPT = {  # options of `generate`, which are rules about the prompt's words or its length
    "repetition_penalty": 3.0,
    "encoder_repetition_penalty": 0.3,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "min_length": None,  # of the prompt and two words
}


@pytest.mark.parametrize("rule", OF_THE_PROMPT)
@pytest.mark.parametrize("way", ["padded on the left", "after a shared image", "as an option"])
def test_padding_is_no_word_of_the_prompt(rule, way):
    """Neither for the checkpoint's own rules nor for given ones, wherever it stands: what it pads
    with, or what ends an answer, is the likeliest word.
    """
    subject = subject_of()
    image, long = models.picture(0), "what is in the picture, and where is it, and why is it there?"
    rows = [subject.encode(image, text) for text in ("why?", long)]
    if rule == "min_length":
        word = subject.model.generation_config.eos_token_id = subject.vocabulary.end_ids[0]
        subject.model.generation_config.min_length = rows[0]["input_ids"].shape[1] + 2
    else:
        word = subject.vocabulary.pad_id
        subject.model.generation_config.eos_token_id = None
    head = subject.model.get_output_embeddings().weight
    (first, *_), *_ = subject.generate_ids(rows[0], 1)
    with torch.no_grad():
        head[word] = 1.05 * head[first]
    options = {} if rule == "min_length" else {rule: OF_THE_PROMPT[rule]}
    if way != "as an option":
        for name, value in options.items():
            setattr(subject.model.generation_config, name, value)
        options = {}
    alone = [subject.generate_ids(row, 4, **options)[0].tolist() for row in rows]
    if way == "after a shared image":
        together = ImageQuestions(subject).generate(rows, 4, **options)
    else:
        together = subject.generate_ids(collate(rows), 4, **options)
    assert [ids.tolist() for ids in together] == alone
    if rule != "min_length":
        assert alone[0][0] == word


def test_generated_ids_end_with_the_end_of_turn_and_without_padding():
    subject = subject_of()
    rows = [subject.encode(None, question) for question in ("why?", "what is it?", "a")]
    (free, *_) = subject.generate_ids(collate(rows), 4)
    subject.model.generation_config.eos_token_id = [
        int(free[1]),
        2,
    ]  # the first row now ends at its second token
    ended = subject.generate_ids(collate(rows), 4)
    assert ended[0].tolist() == free[:2].tolist()
    assert subject.encode(None, "why?", ended[0]).types.mask("response").sum() == 1


def test_answers_are_greedy_unless_asked_otherwise_and_nothing_is_warned_of(caplog):
    subject = subject_of()
    subject.model.generation_config.update(do_sample=True, temperature=0.2, top_p=0.9)
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        answers = {
            subject.answer(models.picture(), "what is it?", max_new_tokens=5) for _ in range(3)
        }
    transformers_logging.disable_propagation()
    assert len(answers) == 1
    assert caplog.records == []
    torch.manual_seed(0)
    sampled = {
        subject.answer(None, "hi", 5, do_sample=True, temperature=3.0, top_p=1.0) for _ in range(4)
    }
    assert len(sampled) > 1


def test_padding_the_image_is_a_choice_that_is_kept_and_shown():
    model, processor = models.llava15()
    crop, pad = load(model, processor=processor), load(model, processor=processor, aspect="pad")
    assert (crop.provenance()["aspect"], pad.provenance()["aspect"]) == ("crop", "pad")
    wide = models.picture(0, 80, 20)
    cropped, padded = crop.encode(wide, "what?"), pad.encode(wide, "what?")
    assert not torch.equal(cropped["pixel_values"], padded["pixel_values"])
    assert cropped.grid[0].box[0].tolist() == [0.375, 0, 0.4375, 0.25]
    assert padded.grid[0].box[0].tolist() == [0, -1.5, 0.25, -0.5]
    square = models.picture(0, 40, 40)
    assert torch.equal(
        crop.encode(square, "what?")["pixel_values"], pad.encode(square, "what?")["pixel_values"]
    )


def test_turning_a_photograph_upright_is_a_choice_that_is_kept_and_shown(tmp_path):
    model, processor = models.llava15()
    quarter_turn = Image.Exif()
    quarter_turn[0x0112] = 6
    stored = models.picture(0, 40, 40)
    stored.save(tmp_path / "photo.png", exif=quarter_turn)
    upright = load(model, processor=processor)
    ignoring = load(model, processor=processor, exif="ignore")
    assert (upright.provenance()["exif"], ignoring.provenance()["exif"]) == ("upright", "ignore")
    for subject, shown in (
        (upright, stored.transpose(Image.Transpose.ROTATE_270)),
        (ignoring, stored),
    ):
        for photo in (tmp_path / "photo.png", Image.open(tmp_path / "photo.png")):
            encoded = subject.encode(photo, "what?")
            assert torch.equal(
                encoded["pixel_values"], subject.encode(shown, "what?")["pixel_values"]
            )
    with pytest.raises(ProbeError, match="load: expected exif upright, ignore, got 'yes'"):
        load(model, processor=processor, exif="yes")


@pytest.mark.parametrize("factory", [models.llava15, models.llava_next_mistral])
@pytest.mark.parametrize("aspect", ["pad", None])
@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "L", "RGBA"])
def test_any_image_even_of_one_pixel_is_answered(factory, aspect, mode):
    model, processor = factory()
    subject = load(model, processor=processor, aspect=aspect if factory is models.llava15 else None)
    answer = subject.answer(Image.new("RGB", (1, 1), "red").convert(mode), "", max_new_tokens=2)
    assert isinstance(answer, str)


def test_a_question_about_no_image_has_no_vision():
    inputs = subject_of().encode(None, "why?")
    assert "pixel_values" not in inputs
    assert not inputs.types.vision.any()
    assert len(inputs.grid[0]) == len(inputs.encoder_grid[0]) == 0


def test_types_of_ones_own_cover_the_prompt_and_leave_the_response():
    subject = subject_of()
    prompt = subject.encode(models.picture(), "why?")
    left = np.zeros(prompt["input_ids"].shape[1], dtype=bool)
    left[np.flatnonzero(prompt.types.vision[0])[prompt.grid[0].col < 2]] = True
    inputs = subject.encode(models.picture(), "why?", response="yes", types={"left": left})
    assert inputs.types.names == ("left", *PAPER)
    assert [int(inputs.types.mask(name).sum()) for name in ("left", "vision")] == [8, 8]


def encode(image, question, response=None, **overrides):
    return lambda tmp_path: subject_of(**overrides).encode(image, question, response)


def answer(*more, **options):
    return lambda tmp_path: subject_of().answer(None, "why?", *more, **options)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (encode("nothing.jpg", "why?"), "expected an image file, got 'nothing.jpg' .no such file"),
        (encode(None, "what is <image>?"), "words without <image>"),
        (
            encode(None, "what?", "a <image>"),
            "response: expected words without <image>.* got 'a <image>'",
        ),
        (encode(None, None), "expected words, or a conversation .a list of messages., got None"),
        (encode(None, 5), "expected words, or a conversation .*, got 5"),
        (encode(None, ["why?"]), "expected words, or a conversation .*, got .'why"),
        (
            answer(temprature=0.5),
            "generate: expected options that model.generate takes, got temprature: ",
        ),
        (
            answer(num_return_sequences=2, do_sample=True),
            "one answer a prompt, as ids, got num_return_sequences=2",
        ),
        (
            answer(return_dict_in_generate=True),
            "one answer a prompt, as ids, got return_dict_in_generate=True",
        ),
        (answer(0), "expected max_new_tokens of 1 or more, got 0"),
        (encode(None, [{"role": "user", "content": [IMAGE]}]), r"\(0 given\), got 1 image item"),
        (
            encode(models.picture(), "a " * 200, max_positions=64),
            "expected at most 64 tokens.* got 2.. tokens",
        ),
        (
            encode(
                None, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "c"
            ),
            "expected one response, got a conversation that ends with one",
        ),
        (
            encode(models.picture(0, 1, 300_000), "why?"),
            "less elongated image, got 1 x 300000 pixels",
        ),
        (
            lambda _: (s := subject_of()).generate_ids(s.encode(None, "a", "b")),
            "rows that end with their prompt",
        ),
        (
            lambda _: (s := subject_of()).generate_ids(
                collate([s.encode(None, "a"), s.encode(None, "a b c")], side="right")
            ),
            "got a response or padding",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_one_clear_line(mistake, message, tmp_path):
    with pytest.raises(ProbeError, match=message) as error:
        mistake(tmp_path)
    assert "\n" not in str(error.value)


def test_options_of_one_answer_are_passed_on():
    subject = subject_of()
    options = {"num_return_sequences": 1, "return_dict_in_generate": False, "num_beams": 2}
    assert isinstance(subject.answer(None, "why?", 2, **options), str)


def test_answers_stop_where_the_models_positions_end():
    subject = subject_of(max_positions=24)
    inputs = subject.encode(None, "why?")
    (ids,) = subject.generate_ids(inputs, max_new_tokens=100)
    assert len(ids) + inputs["input_ids"].shape[1] <= 24


SUBJECTS = {factory.__name__: subject_of(factory) for factory in models.FACTORIES}
WORDS = st.text(alphabet="ab ?\n.éUSER:[]", max_size=10)
TURNS = st.lists(st.tuples(WORDS, WORDS), max_size=2)


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(SUBJECTS)),
    TURNS,
    WORDS,
    st.integers(0, 2),
    st.none() | WORDS,
    st.sampled_from(["last", "all"]),
)
def test_types_partition_whatever_is_said(name, earlier, question, pictures, response, turns):
    messages = [
        {"role": role, "content": words}
        for pair in earlier
        for role, words in zip(("user", "assistant"), pair, strict=True)
    ]
    messages.append(
        {"role": "user", "content": [*[IMAGE] * pictures, {"type": "text", "text": question}]}
    )
    shown = [models.picture(seed, 30 + 20 * seed, 40) for seed in range(pictures)]
    inputs = SUBJECTS[name].encode(shown, messages, response, types="fine", turns=turns)
    masks = np.stack([inputs.types.mask(fine) for fine in FINE])
    assert (masks.sum(axis=0) == 1).all()
    assert masks[FINE.index("last")].sum() == 1
    assert np.flatnonzero(masks[FINE.index("bos")]).tolist() == [0]
    np.testing.assert_array_equal(masks[FINE.index("vision")], inputs.types.vision)
    paper = inputs.types.as_types("paper", turns)
    np.testing.assert_array_equal(paper.mask("response"), masks[FINE.index("response")])
    if response is None and turns == "last":
        assert not paper.mask("response").any()


def test_what_a_checkpoint_saved_for_generating_does_not_change_one_greedy_answer():
    model, processor = models.llava15()
    subject, image = load(model, processor=processor), models.picture(0, 40, 40)
    expected = subject.answer(image, "what?", 5)
    saved = {
        "do_sample": True,
        "temperature": 5.0,
        "num_beams": 3,
        "num_return_sequences": 3,
        "return_dict_in_generate": True,
        "output_scores": True,
        "use_cache": False,
    }
    for name, value in saved.items():
        setattr(model.generation_config, name, value)
    assert subject.answer(image, "what?", 5) == expected
    assert isinstance(subject.answer(image, "what?", 5, num_beams=2), str)


def test_a_tokenizer_of_more_words_than_the_model_is_one_line():
    model, processor = models.llava15()
    model.resize_token_embeddings(20)
    told = "processor: expected ids below 20, as many as the model embeds, got .*resize"
    with pytest.raises(ProbeError, match=told):
        load(model, processor=processor).encode(None, "what is the meaning of it?")
