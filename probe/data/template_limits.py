"""Limits of a chat template, which is a program that came with the model's files.

    check_templates(processor.chat_template)            # no single step takes all memory
    prompt = within_limits(lambda: processor.apply_chat_template(...))

transformers runs templates in a sandbox that bounds a single loop, but neither loops inside loops
nor numbers: both are bounded here, by time and by size.
"""

import ctypes
from ast import literal_eval
from collections.abc import Callable, Mapping
from functools import lru_cache
from threading import Thread
from typing import Any

from jinja2 import Environment, TemplateError

from probe.errors import ProbeError, shown

SECONDS = 10.0  # of one rendering, which takes about a millisecond
LARGEST = 100_000  # number in a template, as jinja2's own bound of a range
MINE = "chat template"
FIX = "mend chat_template.jinja, or set processor.chat_template"


class _TooLateError(BaseException):
    """Raised inside a rendering that has used up its time; not an Exception, which jinja2 wraps."""


def check_templates(template: Any) -> None:
    """Raises ProbeError for a template that computes powers or names a number above `LARGEST`: one
    such step can take all memory, and can't be interrupted. Syntax errors are left to transformers.

    `template`: of a processor, which may have several by name.
    """
    for text in template.values() if isinstance(template, Mapping) else [template]:
        if isinstance(text, str):
            _check(text)


@lru_cache(maxsize=16)
def _check(template: str) -> None:
    try:
        words = [(kind, word) for _, kind, word in Environment().lex(template)]
    except TemplateError:
        return
    if ("operator", "**") in words:
        raise ProbeError(MINE, expected="one that computes no powers", got="**", fix=FIX)
    numbers = [word for kind, word in words if kind in ("integer", "float")]
    large = [word for word in numbers if len(word) > 20 or float(literal_eval(word)) > LARGEST]
    if large:
        expected = f"numbers up to {LARGEST:,} in it"
        raise ProbeError(MINE, expected=expected, got=shown(large[0]), fix=FIX)


def within_limits(rendering: Callable[[], str], seconds: float = SECONDS) -> str:
    """What `rendering` returns or raises. Raises ProbeError, and stops it, after `seconds`."""
    outcome: list[str | BaseException] = []

    def run() -> None:
        try:
            outcome.append(rendering())
        except BaseException as error:  # handed to the thread that waits
            outcome.append(error)

    thread = Thread(target=run, daemon=True, name="chat template")
    thread.start()
    try:
        thread.join(seconds)
    finally:
        if thread.is_alive():
            _stop(thread)
    if not outcome:
        expected = f"one that ends within {seconds:g} s"
        raise ProbeError(MINE, expected=expected, got="one that does not", fix=FIX)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _stop(thread: Thread) -> None:
    """Raises an exception in another thread, at its next step of Python."""
    identity = ctypes.c_ulong(thread.ident or 0)
    error = ctypes.py_object(_TooLateError)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, error)
