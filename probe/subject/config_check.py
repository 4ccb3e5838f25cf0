"""What a model folder's `config.json` must not ask for: attention kernels of the hub, which would
be downloaded and run, and more layers than any model has.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from probe.errors import ProbeError, shown

BUILT_IN = {"eager", "sdpa", "flex_attention"}  # attention implementations of transformers itself
MOST_LAYERS = 1000


def check_config(folder: Path) -> None:
    """Raises ProbeError for a `config.json` with one of these; other faults are left to
    transformers.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        entries = list(_entries(config))
    except (OSError, ValueError, RecursionError):
        return
    for name, value in entries:
        if name.endswith("attn_implementation") and isinstance(value, str) and value:
            _check_kernel(name, value)
        if name.endswith(("layers", "n_layer", "depth")) and isinstance(value, int | float):
            _check_layers(name, value)


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values at every depth; what lies inside attn_implementation keeps that name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            kept = name if name.endswith("attn_implementation") else str(key)
            yield from _entries(inner, kept)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, name)
    else:
        yield name, value


def _check_kernel(name: str, value: str) -> None:
    kernel = value.rsplit("|", 1)[-1]  # "paged|sdpa"
    # without its package transformers takes flash attention from the hub
    installed = kernel.startswith("flash_attention") and find_spec("flash_attn") is not None
    if kernel not in BUILT_IN and not (installed and "/" not in kernel):
        raise ProbeError(
            "load",
            expected=f"{name} in config.json to be one of {', '.join(sorted(BUILT_IN))}",
            got=f"{shown(value)}, which is not installed",
            fix="remove the entry; probe downloads no kernels that a folder names",
        )


def _check_layers(name: str, value: float) -> None:
    if value > MOST_LAYERS:
        raise ProbeError(
            "load",
            expected=f"at most {MOST_LAYERS} {name} in config.json",
            got=shown(value),
        )
