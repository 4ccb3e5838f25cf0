"""The weights of a checkpoint in transformers' layout: in which files, and are they all there?

has_only_pickles(source)                        # pytorch_model.bin, and no safetensors
require_all_weights(name, missing, misfits)     # transformers makes up what is missing
warn_unread_layers(name, model, unexpected)     # and leaves out what the config does not name
"""

import re
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from probe.errors import ProbeError
from probe.subject.model_source import ModelSource


def has_only_pickles(source: ModelSource) -> bool:
    """Whether a folder holds weights as torch pickles them, and none as safetensors."""
    if not source.is_folder:
        return False
    folder = Path(source.location)
    return any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors"))


def require_all_weights(
    name: str, missing: Collection[str], misfits: Collection[tuple[str, Any, Any]]
) -> None:
    """Raises ProbeError where a checkpoint lacks weights of its model, or has some of other shapes:
    transformers fills them with random numbers and goes on. `misfits`: name, shape in the file,
    shape in the model.
    """
    if not (missing or misfits):
        return
    got = f"{name!r} without {len(missing)} of them, such as {min(missing)}" if missing else ""
    if misfits:
        weight, stored, expected = next(iter(misfits))
        got = f"{name!r}, where {weight} is {tuple(stored)} and not {tuple(expected)}"
    raise ProbeError(
        "load",
        expected="a checkpoint with all weights of its model",
        got=got,
        fix="save it whole; if random numbers are meant there, load it yourself and pass "
        "load(model, processor)",
    )


def warn_unread_layers(name: str, model: nn.Module, unexpected: Iterable[str]) -> None:
    """Warns where a checkpoint holds more layers than its config names: transformers leaves them
    out and goes on, and the model answers without them. `unexpected`: names of unread weights.
    """
    lists = {of: part for of, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    unread: dict[str, set[int]] = {}
    for weight in unexpected:
        for found in re.finditer(r"\.(\d+)\.", weight):
            of, number = weight[: found.start()], int(found[1])
            if of in lists and number >= len(lists[of]):
                unread.setdefault(of, set()).add(number)
    for of, numbers in unread.items():
        left_out = ", ".join(map(str, sorted(numbers)))
        message = (
            f"{name!r} holds layers that its config.json leaves out: of {of} the model has the "
            f"first {len(lists[of])}, and not {left_out} (from 0)"
        )
        warnings.warn(message, stacklevel=4)  # the caller of `load`
