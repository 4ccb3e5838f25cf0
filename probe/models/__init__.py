"""Models that ship with the package: trained tiny ones, planted ones of known truth, LLaVA-Mini.

probe.models.planted(read_layers=(2, 3))     # vision can reach the answer in these layers only
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

planted: Callable[..., Any]  # declared for type checkers; see `__getattr__`


def __getattr__(name: str) -> Any:
    if name == "planted":  # imported on first use, because it needs torch
        return import_module("probe.models.planted")  # a module that can be called
    raise AttributeError(f"module 'probe.models' has no attribute {name!r}")
