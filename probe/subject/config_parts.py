"""A `config.json` that leaves out one of its parts (`text_config`): transformers then makes that
part in its default size, seven billion numbers, whatever lies in the weights.

    require_parts(Path("my-llava"), config)      # before any weight is read
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForImageTextToText

from probe.errors import ProbeError

MUCH_LARGER = 2  # than the weights: what is tied or made anew is less


def require_parts(folder: Path, config: Any) -> None:
    """Raises ProbeError where the config of a folder lacks a part and describes a model much larger
    than the weights beside it. Other faults are left to transformers. `config`: as transformers
    reads it.
    """
    is_packed = getattr(config, "quantization_config", None) is not None  # in fewer numbers
    lacking = [] if is_packed else _lacking_parts(folder, config)
    stored = _stored_numbers(folder) if lacking else 0
    if not stored:
        return
    described = _described_numbers(config)
    if described > MUCH_LARGER * stored:
        raise ProbeError(
            "load",
            expected=f"a config.json with {' and '.join(lacking)}, for {stored:,} stored numbers",
            got=f"{str(folder)!r} without, which is a model of {described:,} by default",
            fix="take the config.json that was saved with these weights",
        )


def _lacking_parts(folder: Path, config: Any) -> list[str]:
    try:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in getattr(type(config), "sub_configs", {}) if not written.get(name)]


def _stored_numbers(folder: Path) -> int:
    """How many numbers the safetensors of a folder hold, by their headers."""
    total = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt") as weights:
                names = weights.keys()
                shapes = [weights.get_slice(name).get_shape() for name in names]
        except (OSError, SafetensorError):
            return 0
        total += sum(torch.Size(shape).numel() for shape in shapes)
    return total


def _described_numbers(config: Any) -> int:
    """How many numbers the model of a config has; 0 for one that can't be built without memory."""
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except Exception:  # a model's own code; transformers says it when it loads
        return 0
    return sum(parameter.numel() for parameter in model.parameters())
