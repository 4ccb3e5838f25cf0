"""LLaVA-Mini's layout: the authors' fields of config.json, and what becomes of their names.

    model = from_original(state_dict, config, vision_config)      # from torch.load and json.load

Source: github.com/ictnlp/LLaVA-Mini, `llavamini/model/`; the key list of the full-size model is in
the golden files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from probe.models.llava_mini.chat_templates import template_for
from probe.models.llava_mini.conditional_generation import LlavaMiniForConditionalGeneration
from probe.models.llava_mini.configuration import LlavaMiniConfig
from probe.models.llava_mini.processing import LlavaMiniProcessor
from probe.models.original import llava_names
from probe.models.original.layout import Layout, Settings
from probe.models.original.shapes import Shapes, buildable
from probe.models.original.weight_files import CheckpointError

NAME = "LLaVA-Mini"
RENAMES = {
    r"^model\.prefusion_layers\.": "model.prefusion.layers.",
    r"^model\.compressor\.attn\.": "model.compressor.attention.",
}
OWN_FIELDS = ("compressor_size", "prefusion_layer_num", "resolution_ratio")
REQUIRED_FIELDS = ("hidden_size", "num_hidden_layers", "vocab_size", "compressor_size")
SUPPORTED_VALUES = {  # of fields that LLaVA-Mini defines for some values only; None: absent
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch", None),
    "mm_patch_merge_type": ("flat", "", None),
    "mm_use_im_start_end": (False, None),
}


def native_config(config: Settings, vision_config: Settings) -> LlavaMiniConfig:
    """The native config for the authors' config.json and CLIP's.

    Raises CheckpointError for a field that is missing, not supported, or refused by transformers.
    """
    if missing := [field for field in REQUIRED_FIELDS if field not in config]:
        raise CheckpointError("a LLaVA-Mini config.json", f"one without {', '.join(missing)}")
    for field, values in SUPPORTED_VALUES.items():
        if config.get(field) not in values:
            raise CheckpointError(f"{field} to be {values[0]!r}", repr(config.get(field)))
    with buildable(NAME):
        return LlavaMiniConfig(
            **llava_names.shared_fields(config, vision_config, OWN_FIELDS),
            compressor_size=config["compressor_size"],
            num_prefusion_layers=config.get("prefusion_layer_num", 4),  # the authors' default
        )


def _config(settings: Settings, vision_config: Settings, shapes: Shapes) -> LlavaMiniConfig:
    return native_config(settings, vision_config)


def renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Native names for one of the authors' tensors (see `llava_names.renamed`)."""
    return llava_names.renamed(name, tensor, RENAMES)


def _recognises(settings: Settings, names: Any, folder: Path) -> bool:
    return settings.get("model_type") == "llava_mini_llama"


def _processor(
    config: LlavaMiniConfig, settings: Settings, tokenizer: Any, folders: list[Path]
) -> LlavaMiniProcessor:
    vision: Any = config.vision_config
    side = vision.image_size
    return LlavaMiniProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer,
        compressor_size=config.compressor_size,
        resolution_ratio=settings.get("resolution_ratio", 1),
        aspect="pad" if settings.get("image_aspect_ratio") == "pad" else "square",
        image_token_id=config.image_token_id,
        chat_template=template_for(tokenizer),
    )


LAYOUT = Layout(NAME, LlavaMiniForConditionalGeneration, _recognises, _config, renamed, _processor)
from_original = LAYOUT.from_original
