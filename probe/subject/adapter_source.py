"""An adapter (LoRA and others, as peft saves them): a folder or hub id with `adapter_config.json`,
which names the model that it changes.

    adapter = AdapterSource.of("my-lora")        # None where it is a model
    adapter.base                                 # "llava-hf/llava-1.5-7b-hf"
    adapter.on(model)                            # the model with the adapter's modules inside
    inner_model("load", peft_model)              # of a model that peft has wrapped already

The adapter acts in its model without peft's wrapper, as long as it adds nothing to the prompt. It
is read by peft itself: transformers (5.24, with peft 0.21) leaves DoRA's magnitudes at random.
"""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from probe.errors import ProbeError, shown
from probe.hooks.model_structure import active_adapters
from probe.records.provenance import content_hash
from probe.subject.model_source import ADAPTER_CONFIG

NAME = "default"  # of the adapter in its model
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class AdapterSource:
    """`location` is a path or a hub id, `base` what `load` takes for the model below it."""

    location: str
    base: str
    base_revision: str | None
    revision: str
    local_files_only: bool

    @classmethod
    def of(
        cls, name: str, revision: str | None = None, local_files_only: bool = True
    ) -> "AdapterSource | None":
        """The adapter of this name; None where there is none, or where a model lies beside it.

        Raises ProbeError for an adapter that does not name its model.
        """
        name = os.path.expanduser(name)
        if (Path(name) / "config.json").is_file():
            return None
        options = {"revision": revision, "local_files_only": local_files_only}
        try:
            path = find_adapter_config_file(name, **options)
        except OSError:  # unreachable, or no such repository: said when the model is looked for
            return None
        if path is None:
            return None
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
            base = config.get("base_model_name_or_path")
        except (ValueError, AttributeError) as error:
            raise _unread(name, f"{ADAPTER_CONFIG} is no JSON object: {error}") from error
        if not isinstance(base, str) or not base:
            raise _unread(name, f"base_model_name_or_path={shown(base)} in {ADAPTER_CONFIG}")
        commit = f"config:{content_hash(Path(path), length=16)}"
        return cls(name, base, config.get("revision"), commit, local_files_only)

    @property
    def has_processor(self) -> bool:
        """Whether a folder has a processor of its own, as training scripts save it."""
        return any((Path(self.location) / name).is_file() for name in PROCESSORS)

    def require_peft(self) -> None:
        """Raises ProbeError, before anything is loaded, where peft is not installed, and for an
        adapter that acts in its wrapper alone.
        """
        if find_spec("peft") is None:
            raise ProbeError(
                "load",
                expected="the package peft, which reads adapters",
                got=f"{self.location!r}, an adapter of {self.base!r}, without it",
                fix="pip install peft, or merge the adapter there and load the merged model",
            )
        folder = Path(self.location)
        if folder.is_dir() and not any((folder / name).is_file() for name in WEIGHTS):
            raise _unread(self.location, f"no {WEIGHTS[0]} beside {ADAPTER_CONFIG}")
        import peft  # pyright: ignore[reportMissingImports]

        try:
            config = peft.PeftConfig.from_pretrained(self.location, **self._options)
        except Exception as error:  # an unknown kind, fields of another version
            raise _unread(self.location, " ".join(str(error).split())[:300]) from error
        _require_inside("load", [config])

    def on(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with the adapter's modules in place of its own. Raises ProbeError where the
        adapter does not fit it, or weights of it find no place.
        """
        import peft  # pyright: ignore[reportMissingImports]

        try:
            wrapped = peft.PeftModel.from_pretrained(model, self.location, NAME, **self._options)
            loaded = wrapped.load_adapter(self.location, NAME, **self._options)  # says what is left
        except Exception as error:  # peft, torch and safetensors raise many kinds
            raise _unread(self.location, " ".join(str(error).split())[:300]) from error
        _require_all(loaded, self.location)
        inner: Any = wrapped.get_base_model()
        return inner

    @property
    def _options(self) -> dict[str, Any]:
        return {"local_files_only": self.local_files_only}


def fill_embedded(
    model: PreTrainedModel, location: str, local_files_only: bool, missing: Collection[str]
) -> list[str]:
    """Gives an adapter that lay beside its model, and that transformers put into it, the values
    that peft reads; returns which of the `missing` weights are not the adapter's. Raises ProbeError
    where weights of the adapter find no place.
    """
    if not getattr(model, "peft_config", None):
        return list(missing)
    import peft  # pyright: ignore[reportMissingImports]

    weights = peft.load_peft_weights(location, "cpu", local_files_only=local_files_only)
    inner = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
    _require_all(peft.set_peft_model_state_dict(model, inner, NAME), location)
    return [name for name in missing if f".{NAME}" not in name]


def inner_model(called: str, model: Any) -> Any:
    """The model in peft's wrapper, in which its adapters act; anything else as it is. Raises
    ProbeError where an adapter acts in the wrapper alone.
    """
    if not isinstance(model, nn.Module):
        return model
    configs: Any = getattr(model, "peft_config", None)
    if isinstance(configs, dict):
        active = getattr(model, "active_adapters", None)  # a wrapper's; a model has a method
        names = active if isinstance(active, list) else active_adapters(model)
        _require_inside(called, [configs[name] for name in names if name in configs])
    inside = getattr(model, "get_base_model", None)
    return inside() if callable(inside) else model


def _require_inside(called: str, configs: list[Any]) -> None:
    for config in configs:
        kind = getattr(config.peft_type, "value", config.peft_type)
        reason = ""
        if config.is_prompt_learning:
            reason = "puts virtual tokens before the prompt"
        elif getattr(config, "alora_invocation_tokens", None):
            reason = "acts from certain words of a prompt on"
        if reason:
            raise ProbeError(
                called,
                expected="an adapter inside the model's modules (LoRA, DoRA, IA3 ...)",
                got=f"one of kind {kind}, which {reason}, in peft's wrapper alone",
            )


def _require_all(loaded: Any, location: str) -> None:
    """`loaded`: what torch says of a state dict, its `missing_keys` and `unexpected_keys`."""
    left = [name for name in loaded.missing_keys if f".{NAME}" in name] + [*loaded.unexpected_keys]
    if left:
        raise ProbeError(
            "load",
            expected="an adapter whose weights fit its model",
            got=f"{location!r}: {len(left)} without a counterpart, such as {left[0]}",
        )


def _unread(name: str, reason: str) -> ProbeError:
    return ProbeError("load", expected="an adapter that peft can load", got=f"{name!r}: {reason}")
