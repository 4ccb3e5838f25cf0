"""A model of a config without weights: all shapes exist, nothing is computed, and 70 billion
parameters take no memory.

    model = skeleton(described("tiny-llava").config)

It is on torch's meta device.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.model_structure import (
    output_head,
    stacks,
    text_decoder,
    vision_encoder,
    vision_towers,
)
from probe.measures.cost.prompt_shape import (
    OtherPixelsProbeError,
    patches_of,
    side_of,
    square_size,
)
from probe.models.tiny import FOLDERS
from probe.subject.device_and_dtype import as_dtype
from probe.subject.model_source import read_config

DEFAULT_DTYPE = torch.float16  # of a config that names none


@dataclass(frozen=True)
class Described:
    """A config with the name, revision and dtype of its model."""

    config: Any
    name: str
    revision: str
    dtype: torch.dtype
    toy: bool  # one of the shipped tiny models


def described(source: Any, dtype: str | torch.dtype | None = None) -> Described:
    """The config of a name (no weights are read), a subject, a model or a config.

    Raises ProbeError for anything else, an unknown name and a text-only config.
    """
    model: Any = source.model if hasattr(source, "processor") else source  # a subject has both
    config: Any
    if isinstance(source, str | os.PathLike):
        config, revision = read_config(source)
    elif isinstance(model, PretrainedConfig):
        config = model
        revision = "in memory"
    elif isinstance(model, PreTrainedModel):
        config = model.config
        revision = getattr(source, "revision", None) or "in memory"
    else:
        expected = "a name, a subject, a transformers model or a config"
        raise ProbeError("cost", expected=expected, got=f"a {type(source).__name__}")
    if not hasattr(config, "vision_config") and not hasattr(config, "patch_size"):
        got = f"a {type(config).__name__}, which has text only"
        raise ProbeError("cost", expected="a vision-language model", got=got)
    name = (
        source
        if isinstance(source, str | os.PathLike)
        else getattr(source, "name", "") or config._name_or_path
    )
    native = (
        model.dtype
        if isinstance(model, PreTrainedModel)
        else as_dtype(getattr(config, "dtype", None))
    )
    name = str(name) or type(config).__name__
    return Described(
        config, name, revision, as_dtype(dtype) or native or DEFAULT_DTYPE, name in FOLDERS
    )


def require_square_views(config: Any) -> None:
    """Raises OtherPixelsProbeError where the config names no one square size of views."""
    encoder = getattr(config, "vision_config", None)
    if encoder is None:
        raise OtherPixelsProbeError(f"a {type(config).__name__}, whose LLM reads patches")
    if square_size(encoder, "image_size") is None or square_size(encoder, "patch_size") is None:
        reason = "which names none: it reads images at their own"
        raise OtherPixelsProbeError(f"{type(encoder).__name__}, {reason}")


def skeleton(config: Any) -> PreTrainedModel:
    """The model of a config on the meta device. Raises ProbeError where transformers has no class
    for it.
    """
    try:
        with torch.device("meta"):
            # Eager: its products are plain ones, which every version of torch counts alike.
            model = AutoModelForImageTextToText.from_config(
                copy.deepcopy(config), attn_implementation="eager"
            )
    except (
        ValueError,
        RuntimeError,
        AttributeError,
        TypeError,
        AssertionError,
        ZeroDivisionError,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        got = f"a {type(config).__name__} ({reason})"
        raise ProbeError(
            "cost", expected="a config that a model can be built of", got=got
        ) from error
    # Learned queries are passed as inputs, of which the counter would want gradients. (Weights of
    # linear maps keep theirs: without, torch does not always multiply by them as one matrix.)
    for name, parameter in model.named_parameters():
        if not name.endswith(("weight", "bias")):
            parameter.requires_grad_(False)
    return model.eval()


def own_view(source: Any) -> tuple[int, int]:
    """Pixels along a side of a model's views, and patches of a view. Raises ProbeError as
    `described` does.
    """
    config = described(source).config
    require_square_views(config)
    return side_of(config), patches_of(config)


def parameters(model: PreTrainedModel) -> dict[str, int]:
    """Weights of each component; the remaining ones are the projector's."""
    found = stacks(model)
    parts: dict[str, Sequence[nn.Module]] = {
        "vision_encoder": encoders(model),
        "compressor": found["compressor"].layers if "compressor" in found else (),
        "prefusion": found["prefusion"].layers if "prefusion" in found else (),
        "llm": (text_decoder(model), head_of(model)),
    }
    numbers = {name: _numbers(modules) for name, modules in parts.items()}
    return {**numbers, "projector": _numbers([model]) - sum(numbers.values())}


def encoders(model: PreTrainedModel) -> list[nn.Module]:
    """The vision encoder, and those that a model has beside it: of videos (Video-LLaVA), or of the
    same images (DeepSeek-VL's hybrid).
    """
    encoder = vision_encoder(model)
    if encoder is None:
        return []
    inside = set(encoder.modules())
    beside = [tower for tower in vision_towers(model) if not inside & set(tower.modules())]
    return [encoder, *beside]


def head_of(model: PreTrainedModel) -> nn.Module:
    """The LM head. Raises ProbeError for a model without one."""
    head: Any = output_head(model)
    if not isinstance(head, nn.Module):
        raise ProbeError(
            "cost", expected="a model that predicts words", got=f"a {type(model).__name__}"
        )
    return head


def _numbers(modules: Sequence[nn.Module]) -> int:
    """Parameters of all modules; tied weights count once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())
