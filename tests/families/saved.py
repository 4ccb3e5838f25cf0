"""A family as a folder, which `probe VERB --model FOLDER` opens like any other.

    folder = save("qwen2_vl", tmp_path / "qwen2_vl")
    main(["verify", "--model", str(folder)])

The processor of a few lines can't be saved: the folder names its family, and a class that is
registered with transformers, as a user's own would be, makes it again.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, PretrainedConfig

from tests.families.models import Family
from tests.families.processors import TinyProcessor


class SavedTinyConfig(PretrainedConfig):
    """What the processor is registered for; no model has it."""

    model_type = "saved_tiny_family"


class SavedTinyProcessor(TinyProcessor):
    """Made again from the name of its family."""

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> Any:
        described = json.loads((Path(folder) / "processor_config.json").read_text())
        return _made(described["family"])[1]


AutoProcessor.register(SavedTinyConfig, SavedTinyProcessor, exist_ok=True)


def _made(name: str) -> Family:
    from tests.families.table import ALL_FAMILIES  # which imports this file

    return ALL_FAMILIES[name]()


def save(name: str, folder: Path) -> Path:
    """Writes a family's model, and what its processor is made of."""
    model, processor = _made(name)
    model.save_pretrained(folder)
    if isinstance(processor, TinyProcessor):
        described = {"processor_class": SavedTinyProcessor.__name__, "family": name}
        (folder / "processor_config.json").write_text(json.dumps(described))
    else:
        processor.save_pretrained(folder)
    return folder
