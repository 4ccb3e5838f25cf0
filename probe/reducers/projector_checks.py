"""A projector that a reducer can be put before maps each token by itself: features that are merged
or pooled between encoder and LLM are refused.

    projector = projector_of(model)
    require_single(projector, features[:1, :1])
"""

import inspect
from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.image_readers import COMPRESSOR
from probe.hooks.model_structure import (
    cross_attention,
    stacks,
    text_decoder,
    vision_encoder,
    vision_towers,
)

LLAVA_LIKE = "a LLaVA-like model: encoder, projector, LLM"


def projector_of(model: PreTrainedModel) -> nn.Module:
    """The module between encoder and LLM: `multi_modal_projector`, or the only one there is
    (DeepSeek-VL's `aligner`), or the only one whose linear maps lead from the width of the one to
    that of the other (Janus, which has others to draw with).

    Raises ProbeError, with the reason, for a model without one, and for one that reads a second
    encoder as well.
    """
    base: Any = model.base_model
    kind = type(model).__name__
    encoder = vision_encoder(model)
    if encoder is None:
        raise ProbeError("reduced", expected=LLAVA_LIKE, got=f"{kind}, which has no encoder")
    if COMPRESSOR in stacks(model):
        raise ProbeError(
            "reduced",
            expected="a model whose LLM reads the encoder's patches",
            got=f"{kind}, whose compressor reads the whole grid of them",
        )
    if cross_attention(model):
        reason = "whose words read the image by cross-attention"
        raise ProbeError("reduced", expected=LLAVA_LIKE, got=f"{kind}, {reason}")
    named = getattr(base, "multi_modal_projector", None)
    if named is not None:
        return named
    decoder = text_decoder(model)
    between = [
        child
        for child in base.children()
        if child is not encoder
        and not any(part is decoder for part in child.modules())
        and any(True for _ in child.parameters())
    ]
    if not between:
        refuse_merging(f"{kind}, whose {type(encoder).__name__} makes tokens of several patches")
    leading = between
    if len(between) > 1:
        others = [part for part in between if part not in vision_towers(model)]
        leading = _leading(others, encoder, decoder)
    if len(leading) != 1:
        names = ", ".join(type(child).__name__ for child in between)
        raise ProbeError("reduced", expected=LLAVA_LIKE, got=f"{kind} with {names}")
    (projector,) = leading
    if (inputs := _required_inputs(projector)) > 1:
        reason = f"whose {type(projector).__name__} reads {inputs} encoders"
        raise ProbeError("reduced", expected=LLAVA_LIKE, got=f"{kind}, {reason}")
    return projector


def _leading(parts: Sequence[nn.Module], encoder: nn.Module, decoder: nn.Module) -> list[nn.Module]:
    """Those whose linear maps begin with the encoder's width and end with that of the LLM."""
    widths = tuple(getattr(part.config, "hidden_size", None) for part in (encoder, decoder))
    found = []
    for part in parts:
        maps = [module for module in part.modules() if isinstance(module, nn.Linear)]
        if maps and (maps[0].in_features, maps[-1].out_features) == widths:
            found.append(part)
    return found


def _required_inputs(module: nn.Module) -> int:
    """How many arguments without a default its forward takes."""
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is each.empty for each in parameters)


def require_single(projector: Any, single: Tensor) -> None:
    """Raises ProbeError where a projector does not map each token by itself (Aya Vision)."""
    try:
        projected = projector.forward(single)  # without the hooks that called this
    except (RuntimeError, ValueError, TypeError, LookupError):  # fewer tokens than it merges
        projected = None
    if projected is None or projected.shape[:2] != (1, 1):
        refuse_merging(f"{type(projector).__name__}, which makes tokens of several patches")


def refuse_merging(got: str) -> NoReturn:
    """Raises ProbeError for features that neighbours are merged into."""
    _refuse(got, "use a method inside the LLM: FastV, PyramidDrop, SparseVLM")


def refuse_pooling(got: str) -> NoReturn:
    """Raises ProbeError for features that are averaged over a frame."""
    _refuse(got, "use images: this model averages what it sees of frames")


def _refuse(got: str, fix: str) -> NoReturn:
    expected = "features that are projected and handed to the LLM one by one"
    raise ProbeError("reduced", expected=expected, got=got, fix=fix)
