"""A question, or a conversation, as messages: the form that chat templates take.

messages_of("what is left ?", image_count=1, image_token="<image>")
# [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is left ?"}]}]
"""

from collections.abc import Mapping, Sequence
from typing import Any

from probe.data.refused_words import refuse_placeholders, refuse_unreadable
from probe.errors import ProbeError, shown

Message = dict[str, Any]
# [{"role": "user", "content": str | [{"type": "image"}, ...]}, ...]
Conversation = Sequence[Mapping[str, Any]]
VISUALS = ("image", "video")  # types of items that stand for what the model is shown


def messages_of(question: str | Conversation, image_count: int, image_token: str) -> list[Message]:
    """A question, or a conversation, as messages whose contents are lists of text and image items.

    Images stand before the words of a plain question. Raises ProbeError for what is neither, and
    where the conversation is malformed, has more or fewer image items than there are images, or
    contains the placeholder as text.
    """
    if isinstance(question, str):
        images = [{"type": "image"}] * image_count
        question = [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]
    if not _is_list_of_mappings(question):
        raise ProbeError(
            "question",
            expected="words, or a conversation (a list of messages)",
            got=shown(question),
        )
    kinds = VISUALS if image_count else VISUALS[:1]
    messages = [_message(message, kinds) for message in question]
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
        refuse_unreadable("question", item.get("text", ""))
        refuse_placeholders("question", item.get("text", ""), image_token, fix)
    placeholders = sum(item["type"] in VISUALS for item in items)
    if placeholders != image_count:
        raise ProbeError(
            "conversation",
            expected=f"one image item for each image ({image_count} given)",
            got=f"{placeholders} image item{'s' * (placeholders != 1)}",
        )
    return messages


def image_word(processor: Any) -> str:
    """What stands for an image in the words that a processor takes. Raises ProbeError for one that
    names nothing.
    """
    word = getattr(processor, "image_token", None)  # BLIP-2's is a token with its properties
    number = getattr(processor, "image_token_id", None)
    if word is None and number is not None:  # Idefics names the id alone
        word = processor.tokenizer.convert_ids_to_tokens(number)
    if word is None:
        raise ProbeError(
            "processor",
            expected="one that names the word that stands for an image (image_token)",
            got=type(processor).__name__,
            fix="set processor.image_token",
        )
    return str(word)


def with_kinds(messages: Sequence[Message], kinds: Sequence[str]) -> list[Message]:
    """The messages with items of these types, "image" or "video", in place of the items that stand
    for images. Raises ProbeError for a video item at which an image was given.
    """
    remaining = iter(kinds)
    converted = []
    for message in messages:
        items = [dict(item) for item in message["content"]]
        for item in items:
            if item["type"] in VISUALS:
                kind = next(remaining)
                if item["type"] == "video" and kind != "video":
                    raise ProbeError(
                        "conversation",
                        expected="a Video for each video item",
                        got="an image",
                        fix="pass Video(path or frames)",
                    )
                item["type"] = kind
        converted.append({**message, "content": items})
    return converted


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(item, Mapping) for item in value)


def _message(message: Mapping[str, Any], kinds: Sequence[str]) -> Message:
    def refused(expected: str, value: Any) -> ProbeError:
        return ProbeError("conversation", expected=expected, got=shown(value))

    role = message.get("role")
    content = message.get("content")
    if role not in ("system", "user", "assistant"):
        raise refused("roles system, user and assistant", role)
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    if not _is_list_of_mappings(items):
        raise refused("contents of words or a list of items", content)
    for item in items:
        is_text = item.get("type") == "text" and isinstance(item.get("text"), str)
        if not is_text and item.get("type") not in kinds:
            raise refused("contents of type text or image, or video where one is given", item)
    kept = [{key: item[key] for key in ("type", "text") if key in item} for item in items]
    return {"role": role, "content": kept}
