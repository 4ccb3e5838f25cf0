"""Roles against types written by hand for each template, character by character."""

import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.data.chat_template import render
from probe.data.messages import messages_of
from probe.data.token_roles import Roles, expanded, roles_of
from probe.data.token_types import BOS, FINE, INSTRUCTION, LAST, RESPONSE
from probe.errors import ProbeError

IMAGE = {"type": "image"}
LETTERS = "bsvilr"  # FINE, by its first letters


def text(words):
    return {"type": "text", "text": words}


def user(*content):
    return {"role": "user", "content": list(content)}


def assistant(words):
    return {"role": "assistant", "content": words}


SYSTEM = {"role": "system", "content": "Be brief."}


def by_character(processor, conversation, images, response=None):
    """[(letter of the role, characters)] in order."""
    rendering = render(processor, messages_of(conversation, images, "<image>"), response)
    runs = []
    for letter, character in zip(
        (LETTERS[role] for role in rendering.role), rendering.text, strict=True
    ):
        if runs and runs[-1][0] == letter:
            runs[-1][1] += character
        else:
            runs.append([letter, character])
    return [tuple(run) for run in runs]


LLAMA3_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>"
LLAMA3_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
LLAMA3_ANSWER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
TWO_TURNS = [user(text("a"), IMAGE, text("b")), assistant("yes"), user(text("c"))]

EXPECTED = [
    (models.llava15, "what?", 1, None, [("i", "USER: <image>\nwhat? ASSISTANT:")]),
    (models.llava15, "", 1, "a cat", [("i", "USER: <image>\n ASSISTANT:"), ("r", " a cat")]),
    (
        models.llava15,
        [SYSTEM, user(text("hi"))],
        0,
        None,
        [("s", "Be brief. "), ("i", "USER: hi ASSISTANT:")],
    ),
    (
        models.llava15,
        TWO_TURNS,
        1,
        "no",
        [
            ("i", "USER: <image>\na b ASSISTANT: "),
            ("r", "yes"),
            ("i", " USER: c ASSISTANT:"),
            ("r", " no"),
        ],
    ),
    (
        models.llava_next_vicuna,
        [SYSTEM, user(IMAGE, text("hi"))],
        1,
        None,
        [("s", "Be brief.Be brief. "), ("i", "USER: <image>\nhi ASSISTANT:")],
    ),
    (
        models.llava_next_mistral,
        "hi",
        2,
        "no",
        [("i", "[INST] <image>\n<image>\nhi [/INST]"), ("r", " no")],
    ),
    (
        models.llava_next_mistral,
        TWO_TURNS,
        1,
        None,
        [("i", "[INST] <image>\nab [/INST] "), ("r", "yes"), ("i", "</s> [INST] c [/INST]")],
    ),
    (
        models.llava_llama3,
        " hi ",
        1,
        "no",
        [
            ("s", LLAMA3_SYSTEM.format("You are a helpful assistant.")),
            ("i", LLAMA3_USER + "<image>\nhi" + LLAMA3_ANSWER),
            ("r", "no"),
        ],
    ),
    (
        models.llava_llama3,
        [SYSTEM, *TWO_TURNS],
        1,
        None,
        [
            ("s", LLAMA3_SYSTEM.format("Be brief.")),
            ("i", LLAMA3_USER + "<image>\nab" + LLAMA3_ANSWER),
            ("r", "yes"),
            ("i", "<|eot_id|>" + LLAMA3_USER + "c" + LLAMA3_ANSWER),
        ],
    ),
]


@pytest.mark.parametrize(("factory", "conversation", "images", "response", "expected"), EXPECTED)
def test_roles_of_characters_are_those_written_by_hand(
    factory, conversation, images, response, expected
):
    _, processor = factory()
    assert by_character(processor, conversation, images, response) == expected


class Templated:
    """A processor that is nothing but a template."""

    def __init__(self, template):
        self.chat_template = template

    def apply_chat_template(self, messages, add_generation_prompt):
        return self.chat_template(messages, add_generation_prompt)


def words(message):
    return "".join(item.get("text", "<image>") for item in message["content"])


def llama2(messages, prompt):
    """The system prompt inside the first user's message, as Llama 2 has it."""
    system, rest = (
        ([], messages) if messages[0]["role"] != "system" else (messages[:1], messages[1:])
    )
    out = ""
    for index, message in enumerate(rest):
        said = f"<<SYS>>\n{words(system[0])}\n<</SYS>>\n\n" if system and index == 0 else ""
        out += (
            f"<s>[INST] {said}{words(message)} [/INST]"
            if message["role"] == "user"
            else f" {words(message)} </s>"
        )
    return out


def test_a_system_prompt_inside_the_users_message_reaches_to_the_first_word():
    processor = Templated(llama2)
    assert by_character(processor, [SYSTEM, user(IMAGE, text("hi"))], 1, "no") == [
        ("s", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n"),
        ("i", "<image>hi [/INST]"),
        ("r", " no"),
    ]
    assert by_character(processor, [user(text("hi"))], 0) == [("i", "<s>[INST] hi [/INST]")]


def test_a_template_that_opens_a_new_answer_unlike_an_old_one():
    def thinking(messages, prompt):
        return "".join(f"<{m['role']}>{words(m)}" for m in messages) + (
            "<assistant><think></think>" if prompt else ""
        )

    assert by_character(Templated(thinking), "hi", 0, "no") == [
        ("i", "<user>hi<assistant><think></think>"),
        ("r", "no"),
    ]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            lambda m, p: "".join(words(x) for x in m if x["role"] != "system"),
            "got no system message in it",
        ),
        (
            lambda m, p: "".join(words(x).replace("i", "1") for x in m),
            "keeps the words as they are",
        ),
        (None, "expected a chat template, got none"),
    ],
)
def test_templates_that_do_not_say_who_said_what_are_refused(template, message):
    with pytest.raises(ProbeError, match=message):
        by_character(Templated(template), [SYSTEM, user(text("hi"))], 0)


def test_a_conversation_that_the_template_refuses_is_one_line_with_its_reason():
    _, processor = models.llava_next_mistral()
    with pytest.raises(
        ProbeError, match="system, user: Only user and assistant roles are supported"
    ) as error:
        by_character(processor, [SYSTEM, user(text("hi"))], 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("conversation", "images", "message"),
    [
        ("what is <image> ?", 1, "words without <image>.* got 'what is <image>"),
        ([user(text("hi"))], 1, r"one image item for each image \(1 given\), got 0 image items"),
        ([user(IMAGE, IMAGE, text("hi"))], 1, r"\(1 given\), got 2 image items"),
        ([user(IMAGE)], 0, r"\(0 given\), got 1 image item$"),
        (
            [SYSTEM],
            0,
            "at most one system message, first, and a user message, got roles .'system'.",
        ),
        ([user(text("a")), SYSTEM], 0, "at most one system message, first"),
        (
            [{"role": "tool", "content": "x"}],
            0,
            "expected roles system, user and assistant, got 'tool'",
        ),
        (None, 0, "expected words, or a conversation .a list of messages., got None"),
        ({"role": "user", "content": "hi"}, 0, "expected words, or a conversation"),
        (
            [{"role": "user", "content": 5}],
            0,
            "expected contents of words or a list of items, got 5",
        ),
        ([user("hi")], 0, "expected contents of words or a list of items, got .'hi'."),
        ([user({"type": "video"})], 0, "expected contents of type text or image"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_in_conversations_are_one_clear_line(conversation, images, message):
    with pytest.raises(ProbeError, match=message):
        messages_of(conversation, images, "<image>")


def test_a_token_of_two_roles_belongs_to_the_later_one():
    _, processor = models.llava15()
    answer = "it is red yes"  # "yes USER:" is one token
    conversation = [user(text("a")), assistant(answer), user(text("b"))]
    rendering = render(processor, messages_of(conversation, 0, "<image>"))
    roles = roles_of(processor.tokenizer, rendering)
    end = rendering.text.index(answer) + len(
        answer
    )  # the template's space behind the answer is its own
    offsets = processor.tokenizer(rendering.text, return_offsets_mapping=True)["offset_mapping"]
    (straddling,) = [
        position for position, (start, stop) in enumerate(offsets) if start < end < stop
    ]
    assert [FINE[roles.role[straddling + step]] for step in (-1, 0)] == ["response", "instruction"]


def test_a_bos_that_the_template_writes_is_not_added_again():
    _, processor = models.llava15()
    rendering = render(Templated(llama2), messages_of("hi", 0, "<image>"))
    roles = roles_of(processor.tokenizer, rendering)
    assert (roles.ids == processor.tokenizer.bos_token_id).sum() == 1
    assert (roles.role[0], roles.role[-1]) == (BOS, LAST)


def test_a_tokenizer_that_does_not_know_its_characters_is_refused():
    _, processor = models.llava15()

    class Slow:
        is_fast = False

    with pytest.raises(ProbeError, match=r"expected a fast one .* got Slow"):
        roles_of(Slow(), render(processor, messages_of("hi", 0, "<image>")))


def test_placeholders_expand_wherever_they_stand():
    roles = Roles(
        np.array([1, 9, 5, 9]), np.array([BOS, INSTRUCTION, RESPONSE, LAST]), np.array([0, 0, 1, 1])
    )
    many = expanded(roles, np.array([1, 9, 9, 5, 9, 9, 9]), image_token=9)
    assert "".join(LETTERS[role] for role in many.role) == "biiriil"
    assert many.turn.tolist() == [0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(ProbeError, match="changes nothing but the placeholders"):
        expanded(roles, np.array([1, 9, 6]), image_token=9)


PROCESSORS = {factory.__name__: factory()[1] for factory in models.FACTORIES}
WORDS = st.text(alphabet="ab ?\n.:éUSER[]/<>s\u20ac", max_size=12)


EARLIER = st.lists(st.tuples(WORDS, WORDS.filter(str.strip)), max_size=2)


@settings(max_examples=30)
@given(st.sampled_from(sorted(PROCESSORS)), EARLIER, WORDS, st.integers(0, 2), st.none() | WORDS)
def test_whatever_is_said_is_found_again(name, earlier, question, images, response):
    turns = [message for asked, said in earlier for message in (user(text(asked)), assistant(said))]
    messages = messages_of([*turns, user(*[IMAGE] * images, text(question))], images, "<image>")
    rendering = render(PROCESSORS[name], messages, response)
    said = [""] * (len(earlier) + 1)
    for character, role, turn in zip(rendering.text, rendering.role, rendering.turn, strict=True):
        said[turn] += character if role == RESPONSE else ""
    assert [words.strip() for words in said] == [
        words.strip() for _, words in [*earlier, ("", response or "")]
    ]
    roles = roles_of(PROCESSORS[name].tokenizer, rendering)
    assert (np.diff(roles.turn) >= 0).all()
    (last,) = np.flatnonzero(roles.role == LAST)
    assert (roles.role[last + 1 :] == RESPONSE).all()


@pytest.mark.parametrize("words", ["\ud800", "what is \udcff it?"])
def test_half_a_character_is_one_line(words):
    with pytest.raises(ProbeError, match=r"^question: expected words in UTF-8, got half a char"):
        messages_of(words, 0, "<image>")
    with pytest.raises(ProbeError, match=r"^question: expected words in UTF-8"):
        messages_of([user(text("why?")), assistant(words), user(text("?"))], 0, "<image>")
