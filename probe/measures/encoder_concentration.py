"""How the encoder's attention concentrates on few patches, layer by layer: why a reducer can keep
so few of them.

    dataset = concentration(subject, images, top=(1, 4, 16, 64))
    dataset["top_share"].mean("view")           # (layer, k): the share of the k best patches
    dataset["kept_from_last"].mean("view")      # (layer): overlap with the best of the last layer

The attention that patches receive is what VisionZip selects by: from the class token (CLIP), or
from all positions on average (SigLIP); of each head, over patches only, in float32, without whole
maps. Layers without softmax attention, and those behind merged patches, are NaN.

Source: arXiv 2412.04467, section 3 and its figures on redundancy; the Gini coefficient and entropy
are ours.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from probe.data.image import ImageSource, as_images
from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall, AttentionWeights
from probe.hooks.attention_tap import tap
from probe.hooks.block_threads import only_this_thread
from probe.hooks.finite_states import finite_states
from probe.hooks.model_checks import require_subject
from probe.hooks.model_structure import LayerStack, cls_tokens, stacks
from probe.hooks.own_failure import own_failures
from probe.hooks.stop_forward import StopForward, until_llm
from probe.measures.attention.encoder_layout import known_part, layout_of
from probe.measures.attention.encoder_sequences import CLS, VISION
from probe.records.provenance import provenance
from probe.records.schema import Variable, dataset
from probe.reducers.encoder_output import LayerAttention
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject


def _number(dims: str, units: str, long_name: str) -> Variable:
    return Variable(dims, units, long_name, dtype="float64")


SCHEMA = {
    "top_share": _number("view layer k", "fraction", "attention that the k best patches hold"),
    "gini": _number("view layer", "1", "Gini coefficient of the heads' mean"),
    "head_gini": _number("view layer head", "1", "Gini coefficient of each head"),
    "entropy": _number("view layer", "nat", "entropy over patches of the heads' mean"),
    "class_share": _number("view layer", "fraction", "attention on the class token"),
    "received": _number("view layer patch", "fraction", "attention over patches, head mean"),
    "kept_from_last": _number(
        "view layer", "fraction", "of the last layer's best patches, those among the best here"
    ),
}
TOP = (1, 4, 16, 64)  # patches
BEST = 0.1  # of the patches: how many are compared between layers


@only_this_thread()
def concentration(
    subject: Subject,
    images: Sequence[ImageSource] | ImageSource,
    top: Sequence[int] | None = None,
) -> xr.Dataset:
    """The distribution of the attention that patches receive in each view of these images: dims
    (view, layer), and head, k or patch.

    top_share        share of the k best patches (of the mean over heads), in [0, 1]; k from `top`,
                     by default those of 1, 4, 16, 64 that there are patches for
    gini             0 where all patches receive the same, towards 1 where one receives all (mean
                     over heads first)
    entropy          of the same distribution, in nats; log(patch_count) where it is even
    head_gini        (view, layer, head): of each head alone
    class_share      share of the attention on the class token itself; 0 without one
    received         (view, layer, patch): the distribution, which sums to 1
    kept_from_last   of the best tenth of patches in the last layer that the LLM reads, the share
                     that is among the best tenth here, in [0, 1]

    Raises ProbeError for objects that are not images, a k above the number of patches, a model
    without an encoder, and an encoder of which it is not known which positions are patches.
    """
    require_subject("concentration", subject)
    stack = stacks(subject.model).get("vision")
    if stack is None:
        raise ProbeError(
            "concentration", expected="a model with a vision encoder", got=subject.name
        )
    of_images = [_attention(subject, image, stack) for image in as_images(images)]
    on_class = np.concatenate([part for part, _ in of_images]).sum(-1)
    received = np.concatenate([part for _, part in of_images])
    received /= received.sum(-1, keepdims=True)
    patches = received.shape[-1]
    if top is None:
        top = [k for k in TOP if k <= patches]
    if wrong := [k for k in top if not 1 <= k <= patches]:
        raise ProbeError(
            "concentration",
            expected=f"top of 1 to {patches}, the patches of a view",
            got=str(wrong[0]),
        )
    pooled = received.mean(2)
    pooled /= pooled.sum(-1, keepdims=True)
    falling = -np.sort(-pooled, -1)
    read_layer = _read_by_llm(subject, len(stack.layers))
    arrays = {
        "top_share": falling.cumsum(-1)[..., np.array(top) - 1],
        "gini": gini(pooled),
        "head_gini": gini(received),
        "entropy": -(pooled * np.log(np.maximum(pooled, 1e-30))).sum(-1),
        "class_share": on_class.mean(-1),
        "received": pooled,
        "kept_from_last": _kept(pooled, read_layer),
    }
    attrs = provenance(
        subject,
        kind="concentration",
        patch_count=patches,
        best=BEST,
        read_layer=read_layer,
        attention_of="the class token"
        if cls_tokens(subject.model)
        else "all positions, their mean",
    )
    return dataset("concentration", arrays, SCHEMA, {"k": list(top)}, attrs)


def gini(weights: Float[np.ndarray, "... patch"]) -> Float[np.ndarray, "..."]:
    """The Gini coefficient over the last axis.

    >>> gini(np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])).tolist()
    [0.0, 0.75]
    """
    rising = np.sort(weights, -1)
    count = rising.shape[-1]
    rank = np.arange(1, count + 1)
    weighted = (rank * rising).sum(-1)
    return (2 * weighted / rising.sum(-1) - (count + 1)) / count


def _read_by_llm(subject: Subject, layers: int) -> int:
    """The layer whose output the LLM reads, from 0; the deepest of several."""
    chosen = getattr(subject.model.config, "vision_feature_layer", -1)
    several = [chosen] if isinstance(chosen, int) else list(chosen)
    return max(max(index % (layers + 1) for index in several) - 1, 0)


@torch.no_grad()
def _attention(
    subject: Subject, image: ImageSource, stack: LayerStack
) -> tuple[
    Float[np.ndarray, "view layer head cls"],
    Float[np.ndarray, "view layer head patch"],
]:
    """The attention that class tokens and patches receive in all layers of the encoder, NaN in
    those without.
    """
    inputs = subject.encode(image, "?")
    types = _types_of_positions(subject, inputs, stack)
    part = known_part(subject, inputs, stack)
    assert not isinstance(part, str)  # `_types_of_positions` has raised
    by_layer = _received(subject, inputs, part)
    nothing = torch.full_like(next(iter(by_layer.values())), torch.nan)
    layers = [by_layer.get(layer, nothing) for layer in range(len(stack.layers))]
    weights = torch.stack(layers, 1).double().numpy()
    return weights[..., types == CLS], weights[..., types == VISION]


def _types_of_positions(
    subject: Subject, inputs: Inputs, stack: LayerStack
) -> Int[np.ndarray, " position"]:
    """What each position of a view is: a class token, a patch or something else. Raises ProbeError
    where that is not known, or differs between views.
    """
    layout = layout_of(subject, inputs, stack)
    if isinstance(layout, str):
        got = layout
    elif (layout.ids != layout.ids[:1]).any():
        got = "views whose patches stand at different positions"
    else:
        return layout.ids[0]
    expected = "an encoder of which each position is known"
    raise ProbeError("concentration", expected=expected, got=got)


def _received(
    subject: Subject, inputs: Inputs, stack: LayerStack
) -> dict[int, Float[Tensor, "view head position"]]:
    """The attention that each position receives, by the number of the layer."""
    first = cls_tokens(subject.model)
    number = {name: layer for layer, name in enumerate(stack.modules) if name is not None}
    by_layer: dict[int, Tensor] = {}

    def observe(call: AttentionCall | AttentionWeights) -> None:
        if isinstance(call, AttentionWeights):
            raise ProbeError(
                "concentration",
                expected="an encoder whose queries and keys are visible",
                got=type(call.module).__name__,
            )
        layer = number[call.name]
        attention = LayerAttention.of("concentration", call, layer)
        found = (attention.given_by(0) if first else attention.received()).cpu()
        if layer in by_layer or any(found.shape != other.shape for other in by_layer.values()):
            raise ProbeError(
                "concentration",
                expected="an encoder whose layers attend over all patches of a view",
                got=f"windows or parts of them in layer {layer} (from 0)",
            )
        by_layer[layer] = found

    model = subject.model
    with ExitStack() as blocks:
        blocks.enter_context(own_failures("concentration", model, inputs))
        blocks.enter_context(finite_states("concentration", model, ["vision"]))
        blocks.enter_context(tap(stack.attention, observe))
        blocks.enter_context(suppress(StopForward))
        blocks.enter_context(until_llm(model))
        model(**inputs, use_cache=False)
    return by_layer


def _kept(
    pooled: Float[np.ndarray, "view layer patch"], last: int
) -> Float[np.ndarray, "view layer"]:
    """The overlap of each layer's best patches with those of the layer that the LLM reads; NaN
    where one of them has no attention.
    """
    best = max(1, round(BEST * pooled.shape[-1]))
    rank = (-pooled).argsort(-1, kind="stable").argsort(-1)
    chosen = rank < best
    overlap = (chosen & chosen[:, last : last + 1]).sum(-1) / best
    is_known = ~np.isnan(pooled[..., 0])  # all patches of a layer, or none
    return np.where(is_known & is_known[:, last : last + 1], overlap, np.nan)
