"""The role of every character of a prompt, from the model's own chat template.

Templates are programs, and this file makes no assumption about any of them. The conversation is
rendered twice: as it is, and with every text replaced by a mark that can't occur in it. The second
rendering shows which characters the template wrote itself and which are whose words, in whatever
order, and however often, the template puts them. Where the user's header ("USER: ", "[INST] ")
begins is seen from the same header at a second turn.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Int

from probe.data.messages import Message
from probe.data.template_limits import check_templates, within_limits
from probe.data.token_types import INSTRUCTION, RESPONSE, SYSTEM
from probe.errors import ProbeError

Template = Callable[[Sequence[Message], bool], str]  # (messages, whether to open the next answer)

# private use characters: no template treats them as space or as letters
_MARK = re.compile("\ue000([0-9]+)\ue001")


def _mark(number: int) -> str:
    return f"\ue000{number}\ue001"


@dataclass(frozen=True)
class Rendering:
    """A prompt, and the response after it, as text, with the role and the turn of each of its
    characters.
    """

    text: str
    prompt: str
    role: Int[np.ndarray, "char"]
    turn: Int[np.ndarray, "char"]


@dataclass(frozen=True)
class _Span:
    """Characters of the text that are the words of one message."""

    message: int
    start: int
    end: int


def render(processor: Any, messages: Sequence[Message], response: str | None = None) -> Rendering:
    """The prompt up to the header of the next answer, and `response` after it as the template
    would put it.

    Raises ProbeError where the template refuses the conversation or leaves out or changes words.
    """
    template = _template(processor)
    prompt = template(messages, True)
    answered = [*messages, {"role": "assistant", "content": [{"type": "text", "text": response}]}]
    text = prompt
    spans = _word_spans(template, messages, prompt, True)
    if response and response.strip():
        whole = template(answered, False)
        if whole.startswith(prompt):
            *spans, answer = _word_spans(template, answered, whole, False)
            text = whole[: answer.end]
        else:  # the header before a new answer differs from the one before an old answer
            text = prompt + response
        # from the end of the prompt: a space before the words is generated too
        spans.append(_Span(len(messages), len(prompt), len(text)))
    return Rendering(text, prompt, *_roles(template, answered, text, spans))


def _roles(
    template: Template, messages: Sequence[Message], text: str, spans: Sequence[_Span]
) -> tuple[np.ndarray, np.ndarray]:
    """Role and turn of each character; `messages` ends with the answer that is asked for."""
    role = np.full(len(text), INSTRUCTION)
    turn = np.zeros(len(text), dtype=role.dtype)
    role[: _end_of_system(template, messages, text)] = SYSTEM
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for span in spans:
        if messages[span.message]["role"] == "system":
            role[span.start : span.end] = SYSTEM
        elif span.message in answers:
            role[span.start : span.end] = RESPONSE
            turn[span.end :] = min(answers.index(span.message) + 1, len(answers) - 1)
    return role, turn


def _end_of_system(template: Template, messages: Sequence[Message], text: str) -> int:
    """Characters before the first user's header: the system message, or the template's default one.

    A header is what stands before the words of both the first and a second user; what closes the
    answer between them ("</s>") is not part of it. A system prompt that the template writes inside
    the first user's message shares no header, and reaches to the first word.
    """
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    first, answer, second = (
        {"role": role, "content": [{"type": "text", "text": _mark(number)}]}
        for number, role in enumerate(("user", "assistant", "user"))
    )
    before = template([*system, first], True).partition(_mark(0))[0]
    if not text.startswith(before):  # a template may write images in front of everything
        images = [item for message in messages for item in message["content"]]
        first["content"][:0] = [item for item in images if item["type"] != "text"]
        before = template([*system, first], True).partition(_mark(0))[0]
    if not text.startswith(before):
        return 0
    try:
        between = template([*system, first, answer, second], True).partition(_mark(1))[2]
        closing = template([*system, first, answer], False).partition(_mark(1))[2]
    except ProbeError:  # a template of one turn only
        return len(before) if system else 0
    header = between.partition(_mark(2))[0].removeprefix(closing)
    shared = 0
    while shared < min(len(header), len(before)) and header[-1 - shared] == before[-1 - shared]:
        shared += 1
    return len(before) - shared


def _word_spans(
    template: Template, messages: Sequence[Message], text: str, open_answer: bool
) -> list[_Span]:
    """The stretches of `text`, the rendering of `messages`, that are the words of a message.

    Each text item is replaced by a numbered mark, and the marked conversation is rendered. What
    stands between the marks is the template's own text; it must occur in `text` in the same order,
    with the words in place of the marks.
    """
    marked, words = _marked(messages)
    opening, *pieces = _MARK.split(template(marked, open_answer))
    numbers = [int(number) for number in pieces[::2]]
    closings = pieces[1::2]
    left_out = [owner for number, (owner, _) in enumerate(words) if number not in numbers]
    if left_out:
        raise ProbeError(
            "chat template",
            expected="every message in the prompt",
            got=f"no {messages[left_out[0]]['role']} message in it",
        )
    faithful = text.startswith(opening)
    position = len(opening)
    spans = []
    for number, closing in zip(numbers, closings, strict=True):
        owner, item = words[number]
        length = _length_in(text, position, item, closing)
        if length is None:
            faithful = False
            break
        spans.append(_Span(owner, position, position + length))
        position += length + len(closing)
    if not faithful or position != len(text):
        raise ProbeError(
            "chat template", expected="one that keeps the words as they are", got="other text"
        )
    return spans


def _marked(messages: Sequence[Message]) -> tuple[list[Message], list[tuple[int, str]]]:
    """The messages with a mark for each text item, and the message and words of each mark."""
    words: list[tuple[int, str]] = []
    marked: list[Message] = []
    for index, message in enumerate(messages):
        items = [dict(item) for item in message["content"]]
        for item in items:
            if item.get("text", "").strip():
                words.append((index, item["text"]))
                item["text"] = _mark(len(words) - 1)
        marked.append({**message, "content": items})
    return marked, words


def _length_in(text: str, position: int, words: str, closing: str) -> int | None:
    """Characters that the words take at this position of the text, with `closing` after them; None
    where they are not there. Many templates strip the space around words, VoCo-LLaMA's takes out
    newlines.
    """
    joined = words.replace("\n", "")
    variants = (words, words.strip(), words.lstrip(), words.rstrip(), joined, joined.strip())
    fits = (variant for variant in variants if text.startswith(variant + closing, position))
    return next(map(len, fits), None)


def _template(processor: Any) -> Template:
    """The processor's chat template. Raises ProbeError where there is none, or one beyond
    the limits, and when it is called with a conversation that it refuses.
    """
    if getattr(processor, "chat_template", None) is None:
        raise ProbeError(
            "processor",
            expected="a chat template",
            got="none",
            fix="set processor.chat_template to the model's",
        )

    check_templates(processor.chat_template)

    def template(messages: Sequence[Message], open_answer: bool) -> str:
        if not _has_only_marks(messages):
            return rendered(messages, open_answer)
        known = _renderings_of(processor)
        key = f"{messages!r} {open_answer}"
        if key not in known:
            known[key] = rendered(messages, open_answer)
        return known[key]

    def rendered(messages: Sequence[Message], open_answer: bool) -> str:
        copies = [dict(message) for message in messages]
        try:
            return within_limits(
                lambda: processor.apply_chat_template(copies, add_generation_prompt=open_answer)
            )
        except ProbeError:  # it does not end
            raise
        except Exception as error:  # jinja2's TemplateError, or whatever the template's code raises
            roles = ", ".join(message["role"] for message in messages)
            raise ProbeError(
                "chat template", expected="a conversation it takes", got=f"{roles}: {error}"
            ) from error

    return template


# Of each processor: what its template makes of conversations of marks, by all that it depends on.
# They are the same for every question: four of the five renderings that a prompt takes.
_RENDERINGS: WeakKeyDictionary[Any, tuple[str, dict[str, str]]] = WeakKeyDictionary()
MOST_RENDERINGS = 64


def _has_only_marks(messages: Sequence[Message]) -> bool:
    texts = [item.get("text", "") for message in messages for item in message["content"]]
    return all(not text.strip() or _MARK.fullmatch(text) for text in texts)


def _renderings_of(processor: Any) -> dict[str, str]:
    """The known renderings of a processor as it is now; an empty dict where nothing may be kept."""
    words = getattr(getattr(processor, "tokenizer", None), "special_tokens_map", None)
    setting = f"{processor.chat_template!r} {words!r}"
    if "strftime_now" in setting:  # a template may ask for the time
        return {}
    try:
        known = _RENDERINGS.get(processor)
        if known is None or known[0] != setting or len(known[1]) >= MOST_RENDERINGS:
            known = _RENDERINGS[processor] = setting, {}
        return known[1]
    except TypeError:  # one that can't be looked up, or be referred to weakly
        return {}
