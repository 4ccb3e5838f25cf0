"""Weight files on disk: which files make up a checkpoint, what each holds, and its tensors.

    for file in weight_files(folder):
        shapes = outline(file)          # on the meta device: names, shapes and dtypes
        tensors = read_tensors(file)            # mapped from disk, not copied

Formats: safetensors, and .bin with `weights_only`, so that no code in a checkpoint is ever run.
"""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

INDEX = "model.safetensors.index.json"
# In order of preference. The last ones are all that a first training stage saves.
WEIGHT_FILES = (
    INDEX,
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "mm_projector.bin",
    "query_abstractor.bin",
)
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, or another model's. `str(error)` is one line."""

    def __init__(self, expected: str, got: str):
        self.expected = expected
        self.got = got
        super().__init__(f"checkpoint: expected {expected}, got {got}")


def has_weights(folder: Path) -> bool:
    """Whether a folder has any weight file, or is one."""
    return folder.is_file() or any((folder / name).is_file() for name in WEIGHT_FILES)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, or the one that is named. Raises CheckpointError if it has
    none, or not all of them.
    """
    if folder.is_file():
        return [folder]
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise _lacking(folder)
    return [found] if found.suffix != ".json" else _listed(found)


def _listed(index: Path) -> list[Path]:
    weight_map = read_settings(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"a weight_map in {index.name}", "none")
    files = sorted({index.parent / str(name) for name in weight_map.values()})
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"the files that {index.name} lists", f"no {', '.join(missing)}")
    return files


def _lacking(folder: Path) -> CheckpointError:
    if shards := sorted(file.name for file in folder.glob("*-of-*.*")):
        return CheckpointError(
            f"an index file ({INDEX} or {WEIGHT_FILES[2]}) beside {shards[0]}", "none"
        )
    if (folder / "adapter_config.json").is_file():
        return CheckpointError(
            "whole weights", f"a LoRA adapter in {str(folder)!r}; merge it into its model first"
        )
    return CheckpointError(
        f"weights ({WEIGHT_FILES[1]}, {WEIGHT_FILES[3]}, {WEIGHT_FILES[4]} or shards) in "
        f"{str(folder)!r}",
        "none",
    )


def tensor_names(folder: Path) -> set[str]:
    """The names of a folder's tensors, by its index where it has one. Raises CheckpointError as
    `weight_files` and `outline` do.
    """
    for name in WEIGHT_FILES:
        if name.endswith(".json") and (folder / name).is_file():
            return set(read_settings(folder / name).get("weight_map", ()))
    return {name for file in weight_files(folder) for name in outline(file)}


def outline(file: Path) -> dict[str, Tensor]:
    """A file's tensors on the meta device. Raises CheckpointError for a damaged file."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                return {name: _meta(opened.get_slice(name)) for name in opened.keys()}  # noqa: SIM118
        tensors = torch.load(file, map_location="meta", weights_only=True)
        if not isinstance(tensors, dict) or not all(
            isinstance(tensor, Tensor) for tensor in tensors.values()
        ):
            raise TypeError("it holds something other than tensors by name")
        return tensors
    except pickle.UnpicklingError as error:
        why = "cut short, or more than tensors in it: no code of a checkpoint is run"
        raise CheckpointError("a whole weight file", f"{file.name} ({why})") from error
    except Exception as error:  # safetensors, zipfile and torch: types of their own
        raise CheckpointError("a whole weight file", f"{file.name} ({one_line(error)})") from error


def _meta(part: Any) -> Tensor:
    return torch.empty(
        part.get_shape(),
        device="meta",
        dtype=SAFETENSORS_DTYPES.get(part.get_dtype(), torch.float32),
    )


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that `outline` accepted, memory-mapped where the format allows it."""
    if file.suffix == ".safetensors":
        return load_file(file)
    mapped = zipfile.is_zipfile(file)  # the format before torch 1.6 cannot be mapped
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object of settings. Raises CheckpointError for a missing or damaged file."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise TypeError(f"a {type(settings).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"a readable {path.name} in {str(path.parent)!r}", one_line(error)
        ) from error
    return settings


def one_line(error: BaseException) -> str:
    """A library's message on one line of at most 200 characters."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:200] or type(error).__name__
