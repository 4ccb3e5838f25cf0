"""From a name to a model and its processor: the shipped tiny models, a local folder (also
LLaVA-Mini's authors' own layout), or the Hugging Face hub.

Weights are safetensors only and no code of a checkpoint is ever run. The network is asked for hub
ids only.
"""

import copy
import hashlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from probe.errors import ProbeError
from probe.hooks.model_structure import cls_tokens, image_token_id, is_compiled

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
END = 2**20  # bytes of a file of weights


@dataclass(frozen=True)
class Checkpoint:
    """A model in eval mode with what says exactly which one it is."""

    model: PreTrainedModel
    processor: Any
    name: str
    revision: str
    toy: bool


def open_checkpoint(
    name: str | os.PathLike[str],
    processor: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn: str | None = None,
    quantization: str | None = None,
) -> Checkpoint:
    """A model by name. By default on the GPU in the checkpoint's own precision, or on the CPU in
    float32.

    Raises ProbeError for a name that is none, a folder without a config, a model of text only, a
    device that the machine lacks, a missing bitsandbytes, and for whatever transformers can't load,
    with its reason.
    """
    from probe.models.llava_mini import is_original  # makes LLaVA-Mini known to transformers, too

    source, local, toy = _source(name)
    device = as_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wanted = as_dtype(dtype) or (
        None if device.type == "cuda" else torch.float32
    )  # None: the checkpoint's own
    if local and is_original(source):
        model, processor = _of_the_authors(source, processor, wanted, quantization)
        model.to(device)  # pyright: ignore[reportArgumentType]
        _switch(model, attn)
        return Checkpoint(
            model, _complete(processor, model), str(name), fingerprint(Path(source)), toy
        )
    options = {
        "dtype": wanted or "auto",
        "attn_implementation": attn,
        **_quantized(quantization, device),
    }
    where = {"local_files_only": local, "trust_remote_code": False}
    try:
        processor = processor or AutoProcessor.from_pretrained(source, **where)
        model = AutoModelForImageTextToText.from_pretrained(
            source, use_safetensors=True, **options, **where
        )
        model = model if quantization else model.to(device)  # type: ignore[arg-type]
    except Exception as error:  # safetensors, tokenizers, json and torch raise a dozen kinds, transformers the rest
        raise _unreadable(str(name), error) from error
    image_token_id(model)
    revision = getattr(model.config, "_commit_hash", None) or (
        fingerprint(Path(source)) if local else "unknown"
    )
    return Checkpoint(model.eval(), _complete(processor, model), str(name), revision, toy)


def read_config(name: str | os.PathLike[str]) -> tuple[Any, str]:
    """The config of a model by name, and its revision; weights are neither read nor downloaded.

    Raises ProbeError as `open_checkpoint` does.
    """
    from probe.models.llava_mini.folder import examine, is_original

    source, local, _ = _source(name)
    try:
        if local and is_original(source):
            config: Any = examine(source).config
        else:
            config = AutoConfig.from_pretrained(
                source, local_files_only=local, trust_remote_code=False
            )
    except Exception as error:  # as many kinds as of weights
        raise _unreadable(str(name), error) from error
    return config, getattr(config, "_commit_hash", None) or (
        fingerprint(Path(source)) if local else "unknown"
    )


def adopt(
    model: Any,
    processor: Any,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn: str | None = None,
    quantization: str | None = None,
) -> Checkpoint:
    """A model in memory: put in eval mode; moved, converted or switched only as far as the
    arguments say so.

    Raises ProbeError for what is no transformers model, has no image token, is compiled, or lacks
    its processor, and for a device that the machine lacks.
    """
    if quantization is not None:
        raise ProbeError(
            "load", expected="a name where quantization is asked for", got="a model in memory"
        )
    if getattr(model, "_orig_mod", None) is not None or is_compiled(model):
        raise ProbeError(
            "load",
            expected="a model that is not compiled",
            got=f"a compiled {_kind(model)}",
            fix="pass the model as it was before torch.compile: a compiled one can't be watched",
        )
    if not isinstance(model, PreTrainedModel):
        raise ProbeError("load", expected="a name or a transformers model", got=f"a {_kind(model)}")
    image_token_id(model)
    processor = _complete(processor, model)
    if device is not None or dtype is not None:
        device = None if device is None else as_device(device)
        model.to(device=device, dtype=as_dtype(dtype))  # type: ignore[call-overload]
    _switch(model, attn)
    name = getattr(model.config, "_name_or_path", "") or _kind(model)
    return Checkpoint(
        model.eval(),
        processor,
        name,
        getattr(model.config, "_commit_hash", None) or "in memory",
        False,
    )


def _switch(model: PreTrainedModel, attn: str | None) -> None:
    if attn is None:
        return
    try:
        model.set_attn_implementation(attn)
    except (ValueError, ImportError) as error:
        kernels = "attn that transformers and the machine have (sdpa, eager, flash_attention_2 ...)"
        raise ProbeError("load", expected=kernels, got=repr(attn)) from error


def _of_the_authors(
    folder: str, processor: Any, dtype: torch.dtype | None, quantization: str | None
) -> tuple[PreTrainedModel, Any]:
    """A LLaVA-Mini in its authors' layout, as it lies there."""
    from probe.models.llava_mini import CheckpointError, load_original

    if quantization is not None:
        fix = f"probe convert {folder} --out NATIVE, then load NATIVE"
        raise ProbeError(
            "load", expected="a native folder to quantize", got=f"the authors' {folder!r}", fix=fix
        )
    try:
        model, own = load_original(folder, dtype=dtype)
    except CheckpointError as error:
        raise ProbeError("load", expected=error.expected, got=error.got) from error
    return model, processor or own


def _kind(model: Any) -> str:
    return type(getattr(model, "_orig_mod", model)).__name__


def as_device(device: str | torch.device) -> torch.device:
    """A device by its name, once a tensor could be made there."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (
        RuntimeError,
        AssertionError,
        ImportError,
        TypeError,
    ) as error:  # each backend has a kind of its own
        there = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        there += ["mps"] * torch.backends.mps.is_available()
        expected = f"a device of this machine ({', '.join(['cpu', *there])})"
        raise ProbeError("load", expected=expected, got=repr(str(device))) from error
    return found


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its name: float32, bfloat16, float16 or their short forms."""
    named = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(named, torch.dtype) and named.is_floating_point):
        raise ProbeError("load", expected=f"a dtype of {', '.join(DTYPES)}", got=repr(dtype))
    return named


def fingerprint(folder: Path) -> str:
    """A folder's stand-in for a revision: its config's text, and name, size and both ends of each
    file of weights.

    Training moves every weight, so the ends tell two trainings apart without reading gigabytes.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for weights in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = weights.stat().st_size
        digest.update(f"{weights.name} {size}\n".encode())
        with weights.open("rb") as file:
            digest.update(file.read(END))
            file.seek(max(0, size - END))
            digest.update(file.read(END))
    return f"sha256:{digest.hexdigest()[:16]}"


def _source(name: str | os.PathLike[str]) -> tuple[str, bool, bool]:
    """Where to load from, whether it is a folder, and whether it is one of the shipped toys."""
    from probe.models.tiny import FOLDERS

    place = os.path.expanduser(
        os.fspath(name)
    )  # os.path, not Path: any text is a path that may not exist
    if isinstance(name, str) and name in FOLDERS:
        folder = FOLDERS[name]
    elif os.path.isdir(place):
        folder = Path(place)
    elif isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name, False, False
    else:
        what = "a file" if os.path.isfile(place) else "which is none of these"
        raise ProbeError(
            "load",
            expected=f"{', '.join(sorted(FOLDERS))}, a folder, or a hub id (llava-hf/llava-1.5-7b-hf)",
            got=f"{str(name)!r}, {what}",
        )
    if not (folder / "config.json").is_file():
        raise ProbeError(
            "load",
            expected="a folder with config.json, weights and a processor",
            got=f"{str(folder)!r}",
        )
    return str(folder), True, folder == FOLDERS.get(str(name))


def _quantized(quantization: str | None, device: torch.device) -> dict[str, Any]:
    if quantization is None:
        return {}
    if quantization not in ("4bit", "8bit"):
        raise ProbeError("load", expected="quantization '4bit' or '8bit'", got=repr(quantization))
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if missing:
        raise ProbeError(
            "load",
            expected=f"the packages that quantization={quantization!r} needs",
            got=f"no {' and no '.join(missing)}",
            fix="pip install 'probe-llava[quantization]'",
        )
    four: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    bits: dict[str, Any] = four if quantization == "4bit" else {"load_in_8bit": True}
    return {"quantization_config": BitsAndBytesConfig(**bits), "device_map": {"": device}}


def _unreadable(name: str, error: Exception) -> ProbeError:
    reason = " ".join(str(error).split())
    if "Unrecognized configuration class" in reason:
        return ProbeError(
            "load", expected="a vision-language model", got=f"{name!r}, a model of text only"
        )
    if "llava_mini_llama" in reason:  # LLaVA-Mini in its authors' layout, on the hub
        fix = f"download it (hf download {name} --local-dir FOLDER) and load FOLDER"
        return ProbeError(
            "load",
            expected="a folder where the layout is LLaVA-Mini's authors'",
            got=repr(name),
            fix=fix,
        )
    return ProbeError(
        "load", expected="a checkpoint that transformers can load", got=f"{name!r}: {reason[:300]}"
    )


def _complete(processor: Any, model: PreTrainedModel) -> Any:
    """The processor, with what older checkpoints leave for the model's config to say."""
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise ProbeError(
            "load",
            expected="a processor with a tokenizer and an image processor",
            got="none" if processor is None else type(processor).__name__,
            fix="pass processor=AutoProcessor.from_pretrained(...)",
        )
    if getattr(processor, "patch_size", 0) is None:
        processor = copy.copy(processor)  # the user's own stays as it is
        processor.patch_size = model.config.vision_config.patch_size
        processor.vision_feature_select_strategy = model.config.vision_feature_select_strategy
        processor.num_additional_image_tokens = cls_tokens(model)
    return processor
