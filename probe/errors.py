"""The one error that a user of `probe` has to read, and the checks that all rooms share.

A mistake is reported in one line: what was called, what it expected, what it got, what to do.

>>> raise ProbeError("encode", expected="an image file", got="'notes.txt'", fix="pass a JPEG")
Traceback (most recent call last):
...
probe.errors.ProbeError: encode: expected an image file, got 'notes.txt'; pass a JPEG
"""

import operator
from collections.abc import Collection, Iterable
from typing import Any


class ProbeError(ValueError):
    """A user's mistake. `str(error)` is one line; the command line prints it, exits with code 2."""

    def __init__(self, called: str, *, expected: str = "", got: str = "", fix: str = ""):
        self.called = called
        self.expected = expected
        self.got = got
        self.fix = fix
        facts = [f"expected {expected}"] if expected else []
        facts += [f"got {got}"] if got else []
        message = "; ".join(part for part in (", ".join(facts), fix) if part)
        super().__init__(" ".join(f"{called}: {message}".split()))


class RunWarning(UserWarning):
    """What a run reports in one line before it goes on: a damaged part, other versions."""


def one_of(
    called: str, name: str, value: object, allowed: Iterable[object], *, fix: str = ""
) -> None:
    """Raises ProbeError unless `value` is among `allowed`. `name` is what comes before the list.

    >>> one_of("drop_vision", "a mode of", "maks", ("mask", "remove"))
    Traceback (most recent call last):
    ...
    probe.errors.ProbeError: drop_vision: expected a mode of mask, remove, got 'maks'
    """
    allowed = list(allowed)
    if value not in allowed:
        expected = f"{name} {', '.join(map(str, allowed))}"
        raise ProbeError(called, expected=expected, got=shown(value), fix=fix)


def at_least(called: str, name: str, value: Any, least: int, *, fix: str = "") -> None:
    """Raises ProbeError unless `value` is a whole number (Python's or numpy's) of `least` or more.

    >>> at_least("cost", "frames", 0, 1)
    Traceback (most recent call last):
    ...
    probe.errors.ProbeError: cost: expected frames of 1 or more, got 0
    """
    try:
        valid = not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        valid = False
    if not valid:
        raise ProbeError(called, expected=f"{name} of {least} or more", got=shown(value), fix=fix)


def whole_numbers(called: str, name: str, values: Any) -> list[int]:
    """One whole number (Python's, numpy's or torch's) or several, as a list. Raises ProbeError for
    others, and for the booleans of a mask, which would count as 0 and 1.

    >>> whole_numbers("drop_vision", "layers", range(2))
    [0, 1]
    >>> whole_numbers("drop_vision", "layers", [True, False])
    Traceback (most recent call last):
    ...
    probe.errors.ProbeError: drop_vision: expected layers as whole numbers, got [True, False]
    """
    try:
        listed = list(values) if isinstance(values, Iterable) else [values]
        has_booleans = any("bool" in str(getattr(each, "dtype", type(each))) for each in listed)
        if not has_booleans:
            return [operator.index(each) for each in listed]
    except TypeError:  # a tensor without axes can't be iterated over
        pass
    raise ProbeError(called, expected=f"{name} as whole numbers", got=shown(values))


def not_empty(called: str, name: str, values: Collection[object], *, fix: str = "") -> None:
    """Raises ProbeError for an empty collection; `name` says in the singular what it holds.

    >>> not_empty("record.merge", "record", [])
    Traceback (most recent call last):
    ...
    probe.errors.ProbeError: record.merge: expected at least one record, got none
    """
    if len(values) == 0:
        raise ProbeError(called, expected=f"at least one {name}", got="none", fix=fix)


def shown(value: object, longest: int = 60) -> str:
    """A value as an error message shows it: its `repr` on one line, cut at `longest` characters.

    >>> shown("a" * 100, longest=10)
    "'aaaaaa..."
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def printable(text: str) -> str:
    r"""The text with control characters (such as those that steer a terminal) made visible.

    >>> printable("a\x1b[31mred")
    'a\\x1b[31mred'
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text
    )


def reason_of(error: BaseException) -> str:
    """What went wrong, in a few words: of the system's errors without number and path."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((reason or type(error).__name__).split())[:200]
