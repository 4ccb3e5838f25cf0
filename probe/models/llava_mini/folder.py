"""The authors' folder: its shards one by one into a native folder, or straight into a model.

    convert("llava-mini-llama-3.1-8b", "llava-mini-native")            # memory: one shard
    model, processor = load_original("llava-mini-llama-3.1-8b")

Whatever is missing, surplus or misshapen is told by name before anything is written. The vision tower's weights come
from the checkpoint if it has them, otherwise from a CLIP folder (`vision_tower`); what a folder with an adapter only
(`mm_projector.bin`) leaves out comes from the LLM's folder (`base`).
"""

import json
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .configuration import LlavaMiniConfig
from .conversion import check, empty_model, fitted, native_config, renamed
from .modeling import LlavaMiniForConditionalGeneration
from .processing import LlavaMiniProcessor
from .prompts import chat_template

# What the authors' folders call by name only. Source: config.json of openai/clip-vit-large-patch14-336.
CLIP_L_336 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
              "image_size": 336, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu"}  # fmt: skip
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "mm_projector.bin")
TRUNCATED = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError)


@dataclass(frozen=True)
class Original:
    """An authors' checkpoint on disk: its config, and what of each file becomes part of the model."""

    config: LlavaMiniConfig
    settings: dict[str, Any]  # the authors' config.json
    files: dict[Path, list[str]]  # file -> our names of the tensors that are taken from it
    dtype: torch.dtype
    folders: list[Path]


def convert(
    folder: str | Path, output: str | Path, vision_tower: str | Path | None = None, base: str | Path | None = None
) -> Path:
    """Writes a folder that `from_pretrained` and `probe.load` open. Returns it.

    Raises ValueError, with nothing written, where the checkpoint is not whole or the output folder is not empty.
    """
    output = Path(output)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"convert: expected an empty folder to write to, got {str(output)!r}")
    original = examine(folder, vision_tower, base)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as unfinished:
        path = Path(unfinished) / "model"
        _write_config(original, path)
        _write_weights(original, path)
        if output.exists():
            output.rmdir()
        path.rename(output)
    return output


def load_original(
    folder: str | Path,
    vision_tower: str | Path | None = None,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor | None]:
    """The authors' folder as a model in eval mode, and its processor (None without tokenizer files)."""
    original = examine(folder, vision_tower, base)
    model = empty_model(original.config, dtype or original.dtype)
    for file, names in original.files.items():
        model.load_state_dict(_native(file, model, names), strict=False)
    model.tie_weights()
    return model.eval(), _processor(original)


def is_original(folder: str | Path) -> bool:
    """Whether a folder is one of the authors', by its config.json."""
    path = Path(folder) / "config.json"
    return path.is_file() and json.loads(path.read_text()).get("model_type") == "llava_mini_llama"


def examine(folder: str | Path, vision_tower: str | Path | None = None, base: str | Path | None = None) -> Original:
    """Reads names and shapes only. Raises ValueError for everything that would keep the model from being whole."""
    folder = Path(folder)
    settings = _json(folder / "config.json")
    tower = vision_tower or settings.get("mm_vision_tower", "")
    tower_folder = Path(tower) if Path(tower).is_dir() else None
    if vision_tower is not None and tower_folder is None:
        raise ValueError(f"convert: expected a folder with CLIP's weights as vision_tower, got {str(vision_tower)!r}")
    folders = [folder, *(Path(f) for f in (base, tower_folder) if f is not None)]
    config = native_config(settings, _vision_config(tower_folder, tower))  # pyright: ignore[reportArgumentType]
    with torch.device("meta"):
        model = LlavaMiniForConditionalGeneration(config)
    shapes, files, dtype = {}, {}, torch.float32
    for file in [file for source in folders for file in weight_files(source)]:
        tensors = fitted(dict(_renamed(file, _shapes(file))), model)
        files[file] = [name for name in tensors if name not in shapes]  # the first folder that has a tensor wins
        shapes |= {name: tensors[name].shape for name in files[file]}
        dtype = next((t.dtype for name, t in tensors.items() if "embed_tokens" in name), dtype)
    check(shapes, model)
    return Original(config, settings, files, dtype, folders)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, safetensors before .bin. Raises ValueError if it has none, or not all of them."""
    for name in INDICES:
        if (folder / name).is_file():
            files = sorted({folder / file for file in _json(folder / name)["weight_map"].values()})
            if missing := [file.name for file in files if not file.is_file()]:
                raise ValueError(f"convert: expected the files that {name} lists, got no {', '.join(missing)}")
            return files
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if found:
        return found[:1]
    if shards := sorted(file.name for file in folder.glob("*-of-*.*")):
        raise ValueError(f"convert: expected an index file ({' or '.join(INDICES)}) beside {shards[0]}, got none")
    if (folder / "adapter_config.json").is_file():
        raise ValueError("convert: expected whole weights, got a LoRA adapter; merge it into its model first")
    raise ValueError(f"convert: expected weights ({', '.join(WEIGHTS)}) in {str(folder)!r}, got none")


def _vision_config(folder: Path | None, name: str) -> dict[str, Any]:
    if folder is not None:
        config = _json(folder / "config.json")
        return config.get("vision_config", config)
    if "clip-vit-large-patch14-336" in str(name):
        return CLIP_L_336
    raise ValueError(
        f"convert: expected the vision tower's folder, got only its name {name!r}; pass vision_tower=<folder with CLIP>"
    )


def _shapes(file: Path) -> dict[str, Tensor]:
    """Meta tensors: names, shapes and dtypes without the numbers."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                return {name: torch.empty(opened.get_slice(name).get_shape(), device="meta", dtype=_dtype(opened, name))
                        for name in opened.keys()}  # noqa: SIM118  # fmt: skip
        return torch.load(file, map_location="meta", weights_only=True)
    except TRUNCATED as error:
        raise ValueError(f"convert: expected a whole weight file, got {file.name} ({error})") from error


def _dtype(opened, name: str) -> torch.dtype:
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return names.get(opened.get_slice(name).get_dtype(), torch.float32)


def _renamed(file: Path, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        yield from renamed(name, tensor)


def _native(file: Path, model: LlavaMiniForConditionalGeneration, names: list[str]) -> dict[str, Tensor]:
    """The tensors of one file, under our names."""
    safe = file.suffix == ".safetensors"
    tensors = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    native = fitted(dict(_renamed(file, tensors)), model)
    return {name: native[name].contiguous() for name in names}


def _write_weights(original: Original, path: Path) -> None:
    with torch.device("meta"):
        model = LlavaMiniForConditionalGeneration(original.config)
    files = {file: names for file, names in original.files.items() if names}
    weight_map, size = {}, 0
    for i, (file, names) in enumerate(files.items(), 1):
        shard = f"model-{i:05}-of-{len(files):05}.safetensors"
        tensors = {name: tensor.clone() for name, tensor in _native(file, model, names).items()}
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        save_file(tensors, path / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (path / INDICES[0]).write_text(json.dumps(index, indent=2))


def _write_config(original: Original, path: Path) -> None:
    original.config.architectures = [LlavaMiniForConditionalGeneration.__name__]
    original.config.dtype = original.dtype
    original.config.save_pretrained(path)
    if (generation := original.folders[0] / "generation_config.json").is_file():
        shutil.copy(generation, path)
    if (processor := _processor(original)) is not None:
        processor.save_pretrained(path)


def _processor(original: Original) -> LlavaMiniProcessor | None:
    sources = [folder for folder in original.folders if list(folder.glob("tokenizer*"))]
    if not sources:
        return None
    tokenizer = AutoTokenizer.from_pretrained(sources[0])
    side = original.config.vision_config.image_size
    return LlavaMiniProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer,
        compressor_size=original.config.compressor_size,
        resolution_ratio=original.settings.get("resolution_ratio", 1),
        aspect="pad" if original.settings.get("image_aspect_ratio") == "pad" else "square",
        image_token_id=original.config.image_token_id,
        chat_template=getattr(tokenizer, "chat_template", None) or chat_template("llava_llama_3_1"),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"convert: expected a readable {path.name} in {str(path.parent)!r}, got {error}") from error
