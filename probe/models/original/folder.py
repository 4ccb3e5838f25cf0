"""The authors' folder: what is in it, as a model in memory, and converted shard by shard.

    model, processor = load_original("llava-mini-llama-3.1-8b")
    convert("llava-mini-llama-3.1-8b", "llava-mini-native")       # memory: one shard

Tensors that are missing, surplus or misshapen are named before anything is written. The vision
tower's weights come from the checkpoint if it has them, otherwise from its own folder or file
(`vision`); what a folder with an adapter only (`mm_projector.bin`) lacks comes from the folder of
the LLM (`base`).
"""

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, ProcessorMixin

from probe.models.original.layout import Layout, Settings
from probe.models.original.llava_names import CLIP_L_336
from probe.models.original.shapes import Shapes, buildable, check_shapes, expected_shapes
from probe.models.original.weight_files import (
    INDEX,
    CheckpointError,
    has_weights,
    one_line,
    outline,
    read_settings,
    read_tensors,
    weight_files,
)


@dataclass(frozen=True)
class Original:
    """A checkpoint of the authors on disk, and which tensors of each file the model takes."""

    layout: Layout
    config: Any  # the native one
    settings: Settings
    files: dict[Path, list[str]]  # file -> native names of the tensors taken from it
    dtype: torch.dtype
    folders: list[Path]


def convert(
    folder: str | Path,
    output: str | Path,
    vision: str | Path | None = None,
    base: str | Path | None = None,
) -> Path:
    """Writes a folder that `from_pretrained` and `probe.load` open. Returns it.

    Raises CheckpointError where the checkpoint is incomplete or the output folder is not empty, and
    OSError where it cannot be written, in both cases without leaving files.
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
) -> tuple[Any, ProcessorMixin | None]:
    """The authors' folder as a model in eval mode, and its processor (None without tokenizer
    files).

    dtype: the checkpoint's by default. Raises CheckpointError as `convert` does.
    """
    original = examine(folder, vision, base)
    model = original.layout.empty_model(original.config, dtype or original.dtype)
    for file, names in original.files.items():
        model.load_state_dict(_taken(original.layout, file, names, model), strict=False)
    model.tie_weights()
    return model.eval(), _processor(original)


def examine(
    folder: str | Path, vision: str | Path | None = None, base: str | Path | None = None
) -> Original:
    """Reads names and shapes only. Raises CheckpointError where they do not make a whole model."""
    from probe.models.original.layouts import layout_of  # it knows the models, which know folders

    folder = Path(folder)
    settings = read_settings(folder / "config.json")
    if vision is not None and not Path(vision).exists():
        raise CheckpointError("a folder as vision", repr(str(vision)))
    if base is not None and not Path(base).is_dir():
        raise CheckpointError("a folder as base", repr(str(base)))
    layout = layout_of(folder)
    if layout is None:
        expected = "a checkpoint in the layout of LLaVA-Mini's authors or of a rival of it"
        raise CheckpointError(expected, repr(str(folder)))
    tower = str(vision or settings.get("mm_vision_tower", ""))
    parts = (str(base or ""), tower)
    sources = [folder, *(Path(part) for part in parts if part and Path(part).exists())]
    shapes = _shapes(weight_files(folder))
    config = layout.config(settings, _tower_settings(layout, tower, settings, shapes), shapes)
    with buildable(layout.name):
        model = layout.empty_model(config, torch.float32, device="meta")
    files, dtype = _chosen(layout, sources, model)
    folders = [source for source in sources if source.is_dir()]
    return Original(layout, config, settings, files, dtype, folders)


def _shapes(files: Iterable[Path]) -> Shapes:
    return {name: tensor.shape for file in files for name, tensor in outline(file).items()}


def _chosen(
    layout: Layout, sources: list[Path], model: PreTrainedModel
) -> tuple[dict[Path, list[str]], torch.dtype]:
    """Which tensors are taken from each file, the first folder's first, and the dtype of the word
    embeddings.
    """
    expected = expected_shapes(model).keys()
    shapes: dict[str, torch.Size] = {}
    files: dict[Path, list[str]] = {}
    dtype = torch.float32
    for number, source in enumerate(sources):
        if expected <= shapes.keys():
            break
        if number and not has_weights(source):
            continue  # the vision tower's folder may exist without its weights
        for file in weight_files(source):
            tensors = layout.native(outline(file), model)
            files[file] = [name for name in tensors if name not in shapes]
            shapes |= {name: tensors[name].shape for name in files[file]}
            dtype = next((x.dtype for name, x in tensors.items() if "embed_tokens" in name), dtype)
    check_shapes(shapes, model)
    return files, dtype


def _tower_settings(layout: Layout, tower: str, settings: Settings, shapes: Shapes) -> Settings:
    if tower and Path(tower).is_dir():
        config = read_settings(Path(tower) / "config.json")
        return config.get("vision_config", config)
    known = layout.tower(settings, shapes)
    if known is not None:
        return known
    if "clip-vit-large-patch14-336" in tower:
        return CLIP_L_336
    raise CheckpointError(
        "the vision tower's folder", f"only its name {tower!r}; give it (vision= or --vision)"
    )


def _taken(
    layout: Layout, file: Path, names: list[str], model: PreTrainedModel
) -> dict[str, Tensor]:
    """The tensors that the model takes from one file, by native name."""
    native = layout.native(read_tensors(file), model)
    return {name: native[name].contiguous() for name in names}


def _write_weights(original: Original, path: Path) -> None:
    """One shard for each of the authors', so that only one at a time is in memory."""
    layout = original.layout
    model = layout.empty_model(original.config, original.dtype, device="meta")
    files = {file: names for file, names in original.files.items() if names}
    weight_map, size = {}, 0
    for i, (file, names) in enumerate(files.items(), 1):
        shard = f"model-{i:05}-of-{len(files):05}.safetensors"
        tensors = _taken(layout, file, names, model)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        try:
            save_file(tensors, path / shard, metadata={"format": "pt"})
        except SafetensorError as error:  # such as a full disk
            raise OSError(one_line(error)) from error
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (path / INDEX).write_text(json.dumps(index, indent=2))


def _write_config(original: Original, path: Path) -> None:
    original.config.architectures = [original.layout.model.__name__]
    original.config.dtype = original.dtype
    original.config.save_pretrained(path)
    for folder in original.folders:
        if (folder / "generation_config.json").is_file():
            shutil.copy(folder / "generation_config.json", path)
            break
    processor = _processor(original)
    if processor is not None:
        processor.save_pretrained(path)


def _processor(original: Original) -> Any:
    sources = [folder for folder in original.folders if list(folder.glob("tokenizer*"))]
    if not sources:
        return None
    tokenizer = read_tokenizer(sources[0], config=original.config.text_config)
    layout = original.layout
    return layout.processor(original.config, original.settings, tokenizer, original.folders)


def read_tokenizer(folder: Path, **options: Any) -> Any:
    """The tokenizer in a folder. Raises CheckpointError where transformers cannot load it."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # tokenizers, json, sentencepiece: each raises types of its own
        expected = f"a tokenizer that transformers can load in {str(folder)!r}"
        raise CheckpointError(expected, one_line(error)) from error
