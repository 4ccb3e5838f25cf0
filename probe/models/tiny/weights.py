"""The folder a tiny model is shipped in: fp16 weights, configuration, processor and recipe.

Weights are stored in half precision and loaded in single precision (`config.dtype`): half the size,
without half-precision arithmetic on a CPU.
"""

import copy
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from probe.models.tiny.training.recipe import Recipe


def save(model: PreTrainedModel, processor: ProcessorMixin, recipe: Any, folder: Path) -> None:
    """Writes a folder that transformers' Auto classes load, each file atomically."""
    with tempfile.TemporaryDirectory(dir=folder) as name, quiet():
        fresh = Path(name)
        half: Any = copy.deepcopy(model).half()
        half.save_pretrained(fresh)
        processor.save_pretrained(fresh)
        config = json.loads((fresh / "config.json").read_text())
        (fresh / "config.json").write_text(
            json.dumps(config | {"dtype": "float32"}, indent=2) + "\n"
        )
        (fresh / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=2) + "\n")
        for file in fresh.iterdir():
            os.replace(file, folder / file.name)


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a folder's weights were made with."""
    values: Any = json.loads((folder / "recipe.json").read_text(), object_hook=_tuples)
    return Recipe(**values)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Lists as the tuples they were before JSON."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return {name: frozen(value) for name, value in values.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Disables `save_pretrained`'s progress bar, which would interrupt that of the training."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
