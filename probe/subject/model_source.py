"""What the name of a model refers to: a shipped tiny model, a local folder or a hub id.

source = ModelSource.of("tiny-llava")        # a folder, toy=True
config, revision = read_config("llava-hf/llava-1.5-7b-hf")
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoProcessor

from probe.errors import ProbeError
from probe.hooks.model_checks import require_one_sequence
from probe.records.provenance import content_hash
from probe.subject.config_check import check_config

ADAPTER_CONFIG = "adapter_config.json"
PATIENCE = 5.0  # seconds for the first answer of the hub


@dataclass(frozen=True)
class ModelSource:
    """`location` is a path or a hub id. `toy`: one of the shipped tiny models."""

    location: str
    is_folder: bool
    toy: bool

    @classmethod
    def of(cls, name: str | os.PathLike[str]) -> "ModelSource":
        """Raises ProbeError for what is neither a shipped model, a folder with a config, nor a hub
        id, and for a config that `check_config` refuses.
        """
        from probe.models.tiny import FOLDERS

        # os.path, not Path: any text may be a path, even if no such file can exist
        path = os.path.expanduser(os.fspath(name))
        if isinstance(name, str) and name in FOLDERS:
            folder = FOLDERS[name]
        elif os.path.isdir(path):
            folder = Path(path)
        elif _is_hub_id(name):
            return cls(str(name), is_folder=False, toy=False)
        else:
            kind = "a file" if os.path.isfile(path) else "which is none of these"
            known = ", ".join(sorted(FOLDERS))
            raise ProbeError(
                "load",
                expected=f"{known}, a folder, or a hub id (llava-hf/llava-1.5-7b-hf)",
                got=f"{str(name)!r}, {kind}",
            )
        if not any((folder / config).is_file() for config in ("config.json", ADAPTER_CONFIG)):
            raise ProbeError(
                "load",
                expected="a folder with config.json, weights and a processor",
                got=repr(str(folder)),
            )
        check_config(folder)
        return cls(str(folder), is_folder=True, toy=folder == FOLDERS.get(str(name)))

    def local_files_only(self) -> bool:
        """Whether only files on this machine are read: those of a folder, and of a hub id while the
        hub can't be reached (its own library would try again for minutes).
        """
        return self.is_folder or not hub_is_reachable()

    def revision(self, config: Any) -> str:
        """The hub's commit; of a folder a hash of its config, for its weights have one of their own
        (`weights_hash`) once they are read.
        """
        if self.is_folder:
            return f"config:{content_hash(Path(self.location) / 'config.json', length=16)}"
        return getattr(config, "_commit_hash", None) or "unknown"


def hub_is_reachable() -> bool:
    """Whether the hub, or the proxy on the way to it, takes a connection within seconds."""
    if constants.HF_HUB_OFFLINE:
        return False
    hub = urlsplit(constants.ENDPOINT)
    way = urlsplit(getproxies().get(hub.scheme) or constants.ENDPOINT)
    port = way.port or (80 if way.scheme == "http" else 443)
    try:
        socket.create_connection((way.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def _is_hub_id(name: str | os.PathLike[str]) -> bool:
    is_text = isinstance(name, str)
    return is_text and name.count("/") == 1 and not name.startswith((".", "/", "~"))


def read_config(name: str | os.PathLike[str], revision: str | None = None) -> tuple[Any, str]:
    """The config of a model by name, and its revision; weights are neither read nor downloaded.

    Raises ProbeError as `load` does.
    """
    from probe.models.original import examine
    from probe.models.original.layouts import layout_of  # registers their models

    source = ModelSource.of(name)
    if source.is_folder and not (Path(source.location) / "config.json").is_file():
        raise ProbeError(
            "load",
            expected="a folder with config.json",
            got=f"{str(name)!r}, an adapter's",
            fix="pass its base model, or the adapter loaded by probe.load",
        )
    try:
        if source.is_folder and layout_of(source.location) is not None:
            config: Any = examine(source.location).config
        else:
            config = AutoConfig.from_pretrained(
                source.location,
                revision=revision or "main",
                local_files_only=source.local_files_only(),
                trust_remote_code=False,
            )
    except Exception as error:  # transformers, safetensors and json raise many kinds
        raise load_error(str(name), error) from error
    require_one_sequence("load", config, str(name))
    return config, source.revision(config)


def processor_of(source: ModelSource, name: str, where: dict[str, Any]) -> Any:
    """The processor of a folder or hub id; `where`: options of `from_pretrained`. Raises ProbeError
    where there is none, or where it can't be read.
    """
    try:
        return AutoProcessor.from_pretrained(source.location, **where)
    except Exception as error:  # transformers and json raise many kinds
        told = load_error(name, error)
        if not source.is_folder:
            raise told from error
        raise ProbeError(
            "load",
            expected="a folder with a processor (processor_config.json, tokenizer.json)",
            got=told.got,
            fix="pass processor=AutoProcessor.from_pretrained(...)",
        ) from error


def config_of(source: ModelSource, name: str, where: dict[str, Any]) -> Any:
    """The config of a folder or hub id; `where`: options of `from_pretrained`. Raises ProbeError
    for one that can't be read, and for another kind of model: of text only, CLIP alone, an
    encoder-decoder.
    """
    try:
        config = AutoConfig.from_pretrained(source.location, **where)
    except Exception as error:  # transformers and json raise many kinds
        raise load_error(name, error) from error
    require_one_sequence("load", config, name)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        kind = type(config).__name__.removesuffix("Config")
        raise ProbeError("load", expected="a vision-language model", got=f"{name!r}, a {kind}")
    return config


def load_error(name: str, error: Exception) -> ProbeError:
    """What transformers could not load, in one line."""
    reason = " ".join(str(error).split())
    is_of_hub = _is_hub_id(name) and not os.path.isdir(name)
    if is_of_hub and isinstance(error, OSError) and not hub_is_reachable():
        return ProbeError(
            "load",
            expected=f"a model that is on this machine, as {constants.ENDPOINT} can't be reached",
            got=f"{name!r}: not in its cache",
            fix="go online, or download it there and pass its folder",
        )
    expected = "a checkpoint that transformers can load"
    got = f"{name!r}: {reason[:300]}"
    fix = ""
    if "trust_remote_code=True" in reason:
        expected = "a model whose code is part of transformers"
        fix = "load it yourself with trust_remote_code=True, and pass load(model, processor)"
    elif "llava_mini_llama" in reason:  # the original LLaVA-Mini layout, on the hub
        expected = "a local folder for a checkpoint in LLaVA-Mini's original layout"
        got = repr(name)
        fix = f"download it (hf download {name} --local-dir FOLDER) and load FOLDER"
    return ProbeError("load", expected=expected, got=got, fix=fix)
