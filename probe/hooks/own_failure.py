"""Say in one line that a model itself can't run a prompt: no image where its class needs one, an
image of a single token that its code trips over.

    with own_failures("measure", model, inputs):
        model(**inputs)      # ProbeError where the model fails without any of our hooks too
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from probe.errors import ProbeError
from probe.hooks.block_threads import untouched

KINDS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)


@contextmanager
def own_failures(called: str, model: Any, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Raises ProbeError in place of an error in the block that the untouched model raises as well.
    Errors of ours, and those of full memory, stay what they are.
    """
    try:
        yield
    except ProbeError:
        raise
    except KINDS as error:
        if isinstance(error, torch.OutOfMemoryError) or not (own := _own_failure(model, inputs)):
            raise
        raise ProbeError(
            called,
            expected="a prompt that the model itself can run",
            got=own,
            fix="this is the model's own code, without a measurement or intervention",
        ) from error


@torch.no_grad()
def _own_failure(model: Any, inputs: Mapping[str, Any]) -> str:
    """What the untouched model's forward raises, "" where it runs."""
    try:
        with untouched():
            model(**inputs, use_cache=False)
    except KINDS as error:
        line = next(iter(str(error).strip().splitlines()), "")
        return f"{type(error).__name__} in {type(model).__name__}: {line[:200]}"
    return ""
