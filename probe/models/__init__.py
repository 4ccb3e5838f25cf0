"""Models that ship with the package: the tiny trained ones, the ones with a known truth,
LLaVA-Mini.

probe.models.planted(read_layers=(2, 3))     # vision can reach the answer in these layers only
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "planted":  # not before it is used: it needs torch
        return import_module("probe.models.planted").planted
    raise AttributeError(f"module 'probe.models' has no attribute {name!r}")
