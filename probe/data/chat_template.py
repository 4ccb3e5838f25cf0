"""Who says what in a prompt: the role of every character, from the model's own chat template.

Templates are programs; nothing here knows any of them. The conversation is rendered twice: as it
is, and with every text replaced by a mark that can't occur in it. The second rendering shows which
characters the template wrote itself and which are whose words, in whatever order, and however
often, the template puts them. Where the user's header ("USER: ", "[INST] ") begins is seen from the
same header at a second turn.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from probe.data.token_types import INSTRUCTION, RESPONSE, SYSTEM
from probe.errors import ProbeError

Message = dict[str, Any]
Conversation = Sequence[
    Mapping[str, Any]
]  # [{"role": "user", "content": str | [{"type": "image"}, ...]}, ...]

_MARK = re.compile("\ue000([0-9]+)\ue001")  # private use: no template treats it as space or letter


@dataclass(frozen=True)
class Rendering:
    """A prompt (and, behind it, a response) as text, with the role and the turn of each of its
    characters.
    """

    text: str
    prompt: str
    role: Int[np.ndarray, "char"]
    turn: Int[np.ndarray, "char"]


def messages_of(question: str | Conversation, pictures: int, image_token: str) -> list[Message]:
    """A question, or a conversation, as messages whose contents are lists of text and image items.

    Images stand before the words of a plain question. Raises ProbeError for what is neither, and
    where the conversation is malformed, has more or fewer image items than there are images, or
    contains the placeholder as text.
    """
    if isinstance(question, str):
        images = [{"type": "image"}] * pictures
        question = [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]
    if not isinstance(question, Sequence) or not all(
        isinstance(message, Mapping) for message in question
    ):
        raise ProbeError(
            "question",
            expected="words, or a conversation (a list of messages)",
            got=repr(question)[:60],
        )
    messages = [_message(message) for message in question]
    roles = [message["role"] for message in messages]
    if "user" not in roles or "system" in roles[1:]:
        raise ProbeError(
            "conversation",
            expected="at most one system message, first, and a user message",
            got=f"roles {roles}",
        )
    items = [item for message in messages for item in message["content"]]
    for item in items:
        fix = 'pass the image as image=, or say where it goes with a {"type": "image"} item'
        refuse_placeholders("question", item.get("text", ""), image_token, fix)
    placeholders = sum(item["type"] == "image" for item in items)
    if placeholders != pictures:
        raise ProbeError(
            "conversation",
            expected=f"one image item for each image ({pictures} given)",
            got=f"{placeholders} image item{'s' * (placeholders != 1)}",
        )
    return messages


def refuse_placeholders(called: str, words: str, image_token: str, fix: str) -> None:
    """Raises ProbeError for words that contain the image token."""
    if image_token in words:
        expected = f"words without {image_token}, which would be taken as a placeholder"
        raise ProbeError(called, expected=expected, got=repr(words[:60]), fix=fix)


def _message(message: Mapping[str, Any]) -> Message:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise ProbeError(
            "conversation", expected="roles system, user and assistant", got=repr(role)
        )
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    if not isinstance(items, Sequence) or not all(isinstance(item, Mapping) for item in items):
        raise ProbeError(
            "conversation", expected="contents of words or a list of items", got=repr(content)[:60]
        )
    for item in items:
        if item.get("type") == "text" and isinstance(item.get("text"), str):
            continue
        if item.get("type") != "image":
            raise ProbeError(
                "conversation", expected="contents of type text or image", got=repr(item)[:60]
            )
    return {
        "role": role,
        "content": [{k: item[k] for k in ("type", "text") if k in item} for item in items],
    }


def render(processor: Any, messages: Sequence[Message], response: str | None = None) -> Rendering:
    """The prompt up to the header of the next answer, and `response` behind it as the template
    would put it.

    Raises ProbeError where the template refuses the conversation or leaves out what somebody says.
    """
    template = _template(processor)
    prompt = template(messages, True)
    answered = [*messages, {"role": "assistant", "content": [{"type": "text", "text": response}]}]
    text, spans = prompt, _aligned(template, messages, prompt, True)
    if response and response.strip():
        whole = template(answered, False)
        if whole.startswith(prompt):
            *spans, (index, _, end) = _aligned(template, answered, whole, False)
            text = whole[:end]
        else:  # the header before a new answer is not the one before an old answer
            index, text = len(messages), prompt + response
        spans.append(
            (index, len(prompt), len(text))
        )  # from the prompt on: a space before the words is generated too
    return Rendering(text, prompt, *_roles(template, answered, text, spans))


def _roles(
    template: Callable, messages: Sequence[Message], text: str, spans: list
) -> tuple[np.ndarray, np.ndarray]:
    """Role and turn of each character; `messages` ends with the answer that is asked for."""
    role = np.full(len(text), INSTRUCTION)
    turn = np.zeros(len(text), dtype=role.dtype)
    role[: _end_of_system(template, messages, text)] = SYSTEM
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for index, start, end in spans:
        if messages[index]["role"] == "system":
            role[start:end] = SYSTEM
        elif index in answers:
            role[start:end] = RESPONSE
            turn[end:] = min(answers.index(index) + 1, len(answers) - 1)
    return role, turn


def _end_of_system(template: Callable, messages: Sequence[Message], text: str) -> int:
    """Characters before the first user's header: the system message, or the template's default one.

    A header is what stands before the words of both the first and a second user; what closes the
    answer between them ("</s>") is not part of it. A system prompt that the template writes inside
    the first user's message shares no header, and reaches to the first word.
    """
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    first, answer, second = (
        {"role": role, "content": [{"type": "text", "text": f"\ue000{index}\ue001"}]}
        for index, role in enumerate(("user", "assistant", "user"))
    )
    before = template([*system, first], True).partition("\ue0000\ue001")[0]
    if not text.startswith(before):
        return 0
    try:
        between = template([*system, first, answer, second], True).partition("\ue0001\ue001")[2]
        closing = template([*system, first, answer], False).partition("\ue0001\ue001")[2]
    except ProbeError:  # a template of one turn only
        return len(before) if system else 0
    header = between.partition("\ue0002\ue001")[0].removeprefix(closing)
    shared = 0
    while shared < min(len(header), len(before)) and header[-1 - shared] == before[-1 - shared]:
        shared += 1
    return len(before) - shared


def _aligned(
    template: Callable, messages: Sequence[Message], text: str, prompt: bool
) -> list[tuple[int, int, int]]:
    """(message, start, end) of every stretch of `text` that is somebody's words."""
    words: list[tuple[int, str]] = []
    marked: list[Message] = []
    for index, message in enumerate(messages):
        items = [dict(item) for item in message["content"]]
        for item in items:
            if item.get("text", "").strip():
                words.append((index, item["text"]))
                item["text"] = f"\ue000{len(words) - 1}\ue001"
        marked.append({**message, "content": items})
    pieces = _MARK.split(template(marked, prompt))  # template text, number, template text, ...
    missing = {index for number, (index, _) in enumerate(words) if str(number) not in pieces[1::2]}
    if missing:
        role = messages[min(missing)]["role"]
        raise ProbeError(
            "chat template", expected="every message in the prompt", got=f"no {role} message in it"
        )
    spans, at = [], len(pieces[0])
    faithful = text.startswith(pieces[0])
    for number, follows in zip(pieces[1::2], pieces[2::2], strict=True):
        index, said = words[int(number)]
        for kept in (said, said.strip(), said.lstrip(), said.rstrip()):  # many templates trim
            if text.startswith(kept + follows, at):
                spans.append((index, at, at + len(kept)))
                at += len(kept) + len(follows)
                break
        else:
            faithful = False
    if not faithful or at != len(text):
        raise ProbeError(
            "chat template", expected="one that keeps the words as they are", got="other text"
        )
    return spans


def _template(processor: Any) -> Callable[[Sequence[Message], bool], str]:
    """The processor's chat template: (messages, whether to open the next answer) -> text."""
    if getattr(processor, "chat_template", None) is None:
        raise ProbeError(
            "processor",
            expected="a chat template",
            got="none",
            fix="set processor.chat_template to the model's",
        )

    def template(messages: Sequence[Message], prompt: bool) -> str:
        try:
            return processor.apply_chat_template(
                [dict(m) for m in messages], add_generation_prompt=prompt
            )
        except Exception as error:  # jinja2's TemplateError, or whatever the template stumbles over
            roles = ", ".join(message["role"] for message in messages)
            raise ProbeError(
                "chat template", expected="a conversation it takes", got=f"{roles}: {error}"
            ) from error

    return template
