"""Every layout of authors, and which of them a folder has.

layout_of("llava-mini-llama-3.1-8b")        # None for a folder in transformers' layout
"""

from pathlib import Path

from probe.models.llava_mini import original_format as llava_mini
from probe.models.original.layout import Layout
from probe.models.original.weight_files import CheckpointError, read_settings, tensor_names
from probe.models.rivals import llama_vid, mqt, tokenpacker, voco

LAYOUTS = (llava_mini.LAYOUT, mqt.LAYOUT, tokenpacker.LAYOUT, voco.LAYOUT, llama_vid.LAYOUT)


def layout_of(folder: str | Path) -> Layout | None:
    """The layout of a folder, None for one of transformers' own or of another model.

    Tensors are looked at where the settings are those of a descendant of LLaVA. Raises
    CheckpointError where these can't be read.
    """
    folder = Path(folder)
    try:
        settings = read_settings(folder / "config.json")
    except CheckpointError:
        return None
    if llava_mini.LAYOUT.recognises(settings, (), folder):
        return llava_mini.LAYOUT
    if "mm_vision_tower" not in settings:
        return None
    names = tensor_names(folder)
    return next((each for each in LAYOUTS if each.recognises(settings, names, folder)), None)
