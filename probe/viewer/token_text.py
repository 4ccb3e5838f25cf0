"""Tokens as a page shows them."""

from typing import Any


def readable(token: Any) -> str:
    """A token without the marks of tokenizers for a space before it.

    >>> readable("▁cat"), readable("Ġcat"), readable("▁")
    ('cat', 'cat', '▁')
    """
    text = str(token)
    return text.lstrip("▁Ġ") or text
