"""The attention implementation of a model (`attn_implementation`): whether this machine has it, and
a change of it in a model that is loaded.

    check_attention("flash_attention_2")        # ProbeError where its package is missing
    set_attention(model, "eager")
"""

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from probe.errors import ProbeError, shown

PACKAGES_OF_ATTENTION = {  # transformers takes the kernels of the hub where the first is missing
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_3", "kernels"),
}


def set_attention(model: PreTrainedModel, implementation: str | dict[str, str] | None) -> None:
    """Changes it in this model alone; None leaves it. Raises ProbeError for one that this machine
    lacks.
    """
    if implementation is None:
        return
    check_attention(implementation)
    _own_config(model)
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        raise _not_available(implementation) from error


def _own_config(model: PreTrainedModel) -> None:
    """Gives the model a config of its own: another model may share the one it has, and would change
    with it.
    """
    copies: dict[int, Any] = {}  # of all its configs, as `deepcopy` keeps them
    for module in model.modules():
        if isinstance(vars(module).get("config"), PretrainedConfig):
            module.config = copy.deepcopy(module.config, copies)


def check_attention(implementation: str | dict[str, str] | None) -> None:
    """Raises ProbeError for an attention implementation that this machine lacks, before anything is
    loaded.
    """
    if implementation is None:
        return
    is_mapping = isinstance(implementation, Mapping)
    for name in implementation.values() if is_mapping else [implementation]:
        if not isinstance(name, str):
            raise _not_available(name)
        if not _is_installed(name):
            raise _not_available(name, f"which needs the package {_packages_of(name)[0]}")
        if name == "flex_attention" and not torch.cuda.is_available():
            raise _not_available(name, "which needs a GPU: on a CPU it compiles for minutes")
        if name not in ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()) and "/" not in str(name):
            raise _not_available(name)


def _packages_of(attention: str) -> tuple[str, ...]:
    """The packages of which an attention implementation needs one."""
    return ("kernels",) if "/" in str(attention) else PACKAGES_OF_ATTENTION.get(attention, ())


def _is_installed(attention: str) -> bool:
    packages = _packages_of(attention)
    return not packages or any(find_spec(package) is not None for package in packages)


def _not_available(implementation: Any, reason: str = "") -> ProbeError:
    available = ["eager", "sdpa"]
    available += ["flex_attention"] * torch.cuda.is_available()
    available += [name for name in PACKAGES_OF_ATTENTION if _is_installed(name)]
    expected = f"an available attn_implementation ({', '.join(available)})"
    got = ", ".join(filter(None, [shown(implementation), reason]))
    return ProbeError("load", expected=expected, got=got)
