"""The KV cache among keyword arguments, under whichever name a version of transformers gives it.

transformers 5.24 renamed `past_key_values` to `cache` in its models, masks and outputs. So a cache
is recognised by its type, and a parameter that takes one by its annotation.

    >>> from transformers import DynamicCache
    >>> arguments = {"use_cache": True, "past_key_values": DynamicCache()}
    >>> type(pop_cache(arguments)).__name__, arguments
    ('DynamicCache', {'use_cache': True})
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from transformers import Cache


def pop_cache(arguments: dict[str, Any]) -> Cache | None:
    """Takes the cache out of keyword arguments; None where there is none."""
    name = next((name for name, value in arguments.items() if isinstance(value, Cache)), None)
    return None if name is None else arguments.pop(name)


def cache_keyword(function: Callable[..., Any], cache: Cache | None) -> dict[str, Any]:
    """`cache` as a keyword argument of `function`. Raises TypeError where it takes no cache."""
    return {_parameter(function): cache}


@lru_cache
def _parameter(function: Callable[..., Any]) -> str:
    for name, parameter in inspect.signature(function).parameters.items():
        if "Cache" in str(parameter.annotation):
            return name
    raise TypeError(f"LLaVA-Mini: expected a function that takes a Cache, got {function}")
