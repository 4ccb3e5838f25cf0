"""Words that a prompt can't hold: placeholders, special tokens, and half characters."""

from collections.abc import Mapping, Sequence
from typing import Any

from probe.errors import ProbeError, shown


def refuse_unreadable(called: str, words: str) -> None:
    """Raises ProbeError for words with half a character of UTF-16 (a "surrogate"): what JSON with
    half a pair, and a command line that is not UTF-8, give; no tokenizer reads it.
    """
    try:
        words.encode()
    except UnicodeEncodeError as error:
        got = f"half a character, {words[error.start]!r}, in {shown(words)}"
        raise ProbeError(called, expected="words in UTF-8", got=got) from None


def refuse_placeholders(called: str, words: str, image_token: str, fix: str) -> None:
    """Raises ProbeError for words that contain the image token."""
    if image_token in words:
        raise ProbeError(
            called,
            expected=f"words without {image_token}, which would be taken as a placeholder",
            got=shown(words),
            fix=fix,
        )


def refuse_special_tokens(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises ProbeError for words such as "</s>", which would end the prompt and not be read."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    for message in messages:
        words = "".join(item.get("text", "") for item in message["content"])
        found = [token for token in sorted(special) if token in words]
        if found and message["role"] != "assistant":
            raise ProbeError(
                "question",
                expected=f"words without {found[0]}, a special token of the tokenizer",
                got=shown(words),
                fix="take it out, or write it with a space inside",
            )
