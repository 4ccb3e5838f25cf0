"""The authors' checkpoints as native ones: in memory, or a folder shard by shard.

    model = from_original(state_dict, config, vision_config)      # from torch.load and json.load
    model, processor = load_original("llava-mini-llama-3.1-8b")
    convert("llava-mini-llama-3.1-8b", "llava-mini-native")       # memory: one shard

Tensors that are missing, surplus or misshapen are named before anything is written. The vision
tower's weights come from the checkpoint if it has them, otherwise from CLIP's folder (`vision`);
what a folder with an adapter only (`mm_projector.bin`) lacks comes from the LLM's folder (`base`).
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer
from transformers.initialization import no_init_weights
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from probe.models.llava_mini.chat_templates import template_for
from probe.models.llava_mini.configuration import LlavaMiniConfig
from probe.models.llava_mini.modeling import LlavaMiniForConditionalGeneration
from probe.models.llava_mini.original_format import (
    adapt_names,
    buildable,
    check_shapes,
    expected_shapes,
    native_config,
    renamed,
)
from probe.models.llava_mini.processing import LlavaMiniProcessor
from probe.models.llava_mini.weight_files import (
    INDEX,
    CheckpointError,
    one_line,
    outline,
    read_settings,
    read_tensors,
    weight_files,
)

# The vision tower that the authors' folders give by name only.
# Source: config.json of openai/clip-vit-large-patch14-336.
CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}


@dataclass(frozen=True)
class Original:
    """A checkpoint of the authors on disk, and which tensors of each file the model takes."""

    config: LlavaMiniConfig
    settings: dict[str, Any]  # the authors' config.json
    files: dict[Path, list[str]]  # file -> native names of the tensors taken from it
    dtype: torch.dtype
    folders: list[Path]


def from_original(
    state_dict: Mapping[str, Tensor],
    config: dict[str, Any],
    vision_config: dict[str, Any],
    vision_state_dict: Mapping[str, Tensor] | None = None,
) -> LlavaMiniForConditionalGeneration:
    """The authors' model, in eval mode and the dtype of its word embeddings.

    config: their config.json (model_type "llava_mini_llama"). vision_config: that of the CLIP
    vision tower. vision_state_dict: CLIP's own weights, for a checkpoint without them (the authors
    load the tower by its name). Raises CheckpointError that names missing, surplus and misshapen
    tensors, and fields that this model does not support.
    """
    native = {}
    for source in (vision_state_dict or {}, state_dict):
        for name, tensor in source.items():
            native |= renamed(name, tensor)
    dtype = next((t.dtype for name, t in native.items() if "embed_tokens" in name), torch.float32)
    model = empty_model(native_config(config, vision_config), dtype)
    native = adapt_names(native, model)
    check_shapes({name: tensor.shape for name, tensor in native.items()}, model)
    model.load_state_dict(native, strict=False)
    model.tie_weights()
    return model.eval()


def empty_model(
    config: LlavaMiniConfig, dtype: torch.dtype, device: str = "cpu"
) -> LlavaMiniForConditionalGeneration:
    """A model with uninitialised weights."""
    with torch.device(device), no_init_weights():
        return LlavaMiniForConditionalGeneration._from_config(config, dtype=dtype)


def is_original(folder: str | Path) -> bool:
    """Whether a folder holds a checkpoint of the authors, by its config.json."""
    try:
        return read_settings(Path(folder) / "config.json").get("model_type") == "llava_mini_llama"
    except CheckpointError:
        return False


def convert(
    folder: str | Path,
    output: str | Path,
    vision: str | Path | None = None,
    base: str | Path | None = None,
) -> Path:
    """Writes a folder that `from_pretrained` and `probe.load` open. Returns it.

    Raises CheckpointError where the checkpoint is incomplete or the output folder is not empty, and
    OSError where it cannot be written, both with nothing left behind.
    """
    output = Path(output).absolute()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise CheckpointError("an empty or a new folder to write to", repr(str(output)))
    original = examine(folder, vision, base)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as unfinished:
        path = Path(unfinished) / "model"  # has normal permissions, unlike the temporary folder
        _write_config(original, path)
        _write_weights(original, path)
        if output.exists():
            output.rmdir()
        path.rename(output)
    return output


def load_original(
    folder: str | Path,
    vision: str | Path | None = None,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor | None]:
    """The authors' folder as a model in eval mode, and its processor (None without tokenizer
    files).

    dtype: the checkpoint's by default. Raises CheckpointError as `convert` does.
    """
    original = examine(folder, vision, base)
    model = empty_model(original.config, dtype or original.dtype)
    for file, names in original.files.items():
        model.load_state_dict(_taken(file, names, model), strict=False)
    model.tie_weights()
    return model.eval(), _processor(original)


def examine(
    folder: str | Path, vision: str | Path | None = None, base: str | Path | None = None
) -> Original:
    """Reads names and shapes only. Raises CheckpointError where they do not make a whole model."""
    folder = Path(folder)
    settings = read_settings(folder / "config.json")
    for name, given in {"vision": vision, "base": base}.items():
        if given is not None and not Path(given).is_dir():
            raise CheckpointError(f"a folder as {name}", repr(str(given)))
    tower = str(vision or settings.get("mm_vision_tower", ""))
    folders = [folder, *(Path(part) for part in (base, tower) if part and Path(part).is_dir())]
    config = native_config(settings, _vision_config(tower))
    with buildable():
        model = empty_model(config, torch.float32, device="meta")
    expected = expected_shapes(model).keys()
    shapes: dict[str, torch.Size] = {}
    files: dict[Path, list[str]] = {}
    dtype = torch.float32
    for source in folders:
        if expected <= shapes.keys():
            break  # the vision tower's folder may exist without its weights
        for file in weight_files(source):
            tensors = adapt_names(dict(_renamed(outline(file))), model)
            files[file] = [name for name in tensors if name not in shapes]  # first folder wins
            shapes |= {name: tensors[name].shape for name in files[file]}
            dtype = next((x.dtype for name, x in tensors.items() if "embed_tokens" in name), dtype)
    check_shapes(shapes, model)
    return Original(config, settings, files, dtype, folders)


def _vision_config(tower: str) -> dict[str, Any]:
    if tower and Path(tower).is_dir():
        config = read_settings(Path(tower) / "config.json")
        return config.get("vision_config", config)
    if "clip-vit-large-patch14-336" in tower:
        return CLIP_L_336
    raise CheckpointError(
        "the vision tower's folder", f"only its name {tower!r}; give it (vision= or --vision)"
    )


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        yield from renamed(name, tensor)


def _taken(
    file: Path, names: list[str], model: LlavaMiniForConditionalGeneration
) -> dict[str, Tensor]:
    """The tensors that the model takes from one file, by native name."""
    native = adapt_names(dict(_renamed(read_tensors(file))), model)
    return {name: native[name].contiguous() for name in names}


def _write_weights(original: Original, path: Path) -> None:
    """One shard for each of the authors', so that only one at a time is in memory."""
    model = empty_model(original.config, original.dtype, device="meta")
    files = {file: names for file, names in original.files.items() if names}
    weight_map, size = {}, 0
    for i, (file, names) in enumerate(files.items(), 1):
        shard = f"model-{i:05}-of-{len(files):05}.safetensors"
        tensors = _taken(file, names, model)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        try:
            save_file(tensors, path / shard, metadata={"format": "pt"})
        except SafetensorError as error:  # such as a full disk
            raise OSError(one_line(error)) from error
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (path / INDEX).write_text(json.dumps(index, indent=2))


def _write_config(original: Original, path: Path) -> None:
    original.config.architectures = [LlavaMiniForConditionalGeneration.__name__]
    original.config.dtype = original.dtype
    original.config.save_pretrained(path)
    for folder in original.folders:
        if (folder / "generation_config.json").is_file():
            shutil.copy(folder / "generation_config.json", path)
            break
    processor = _processor(original)
    if processor is not None:
        processor.save_pretrained(path)


def _processor(original: Original) -> LlavaMiniProcessor | None:
    sources = [folder for folder in original.folders if list(folder.glob("tokenizer*"))]
    if not sources:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            sources[0], config=original.config.text_config, local_files_only=True
        )
    except Exception as error:  # tokenizers, json, sentencepiece: each raises types of its own
        expected = f"a tokenizer that transformers can load in {str(sources[0])!r}"
        raise CheckpointError(expected, one_line(error)) from error
    side = original.config.vision_config.image_size
    return LlavaMiniProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer,
        compressor_size=original.config.compressor_size,
        resolution_ratio=original.settings.get("resolution_ratio", 1),
        aspect="pad" if original.settings.get("image_aspect_ratio") == "pad" else "square",
        image_token_id=original.config.image_token_id,
        chat_template=template_for(tokenizer),
    )
