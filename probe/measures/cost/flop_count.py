"""Operations and cache of each component, counted by running it on the meta device: shapes go
through, no numbers.

    counted = count(skeleton(config), prompt)
    counted.flops["llm"]                       # [in products with weights, in products of queries, keys and values]

A multiply-add is two operations, as everywhere in this package. Products with weights and
attention's own are kept apart: papers often count only the former, as counters do that don't know
the fused kernel. Attention is counted over all pairs of tokens, the masked ones included, as
counters do that do know it; a causal kernel gets by with half. Norms, activations, softmax and
interpolations are not counted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.layer_arguments import output_cache
from probe.hooks.model_structure import stacks
from probe.measures.cost.meta_model import encoders, head_of
from probe.measures.cost.prefused import Prefused, fuses
from probe.measures.cost.prompt_shape import PromptShape, side_of

COMPONENTS = ("vision_encoder", "projector", "compressor", "prefusion", "llm")
OPERATIONS = ("linear", "attention")
WITH_WEIGHTS = (
    "aten.mm",
    "aten.addmm",
    "aten.convolution",
)  # all others are products of activations

Flops = Float[np.ndarray, " operation"]
Parts = Mapping[str, Sequence[nn.Module]]


@dataclass(frozen=True)
class Counted:
    """What a prefill takes. `tokens` and `cache` are of the LLM's layers, vision first and text
    behind it.
    """

    flops: dict[str, Flops]
    tokens: Int[np.ndarray, "layer kind"]
    cache: Float[np.ndarray, " kind"]  # numbers that the LLM's cache holds
    prefix: int  # numbers that later questions about the image reuse, before the LLM
    reduced: bool  # whether fewer vision tokens were wanted than the model makes


@contextmanager
def metered(parts: Parts) -> Iterator[dict[str, Flops]]:
    """The operations that run inside of these modules, and "everything", until the block ends."""
    found = {name: np.zeros(len(OPERATIONS)) for name in (*parts, "everything")}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:

        def note(name: str, sign: int) -> Callable[..., None]:
            return lambda *_: found.__setitem__(name, found[name] + sign * _so_far(counter))

        handles = []
        for name, modules in parts.items():
            for module in modules:
                handles.append(module.register_forward_pre_hook(note(name, -1)))
                handles.append(module.register_forward_hook(note(name, +1)))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
    found["everything"] = _so_far(counter)


def _so_far(counter: FlopCounterMode) -> Flops:
    by_kind = np.zeros(len(OPERATIONS))
    for operator, flops in counter.get_flop_counts().get("Global", {}).items():
        by_kind[0 if str(operator) in WITH_WEIGHTS else 1] += flops
    return by_kind


def count(
    model: PreTrainedModel,
    prompt: PromptShape,
    wanted: Sequence[int] | None = None,
    rows: str = "all",
) -> Counted:
    """The cost of a prompt. `wanted`: the vision tokens of each LLM layer, by default what the
    model makes.

    rows: "all" counts every row of every layer and a head at every position, as papers do; "needed"
    what `generate` runs: the head at the last position, and only keys and values of vision rows in
    the last layer of pre-fusion.
    """
    flops, made, prefused = _before_llm(model, prompt, rows)
    vision = _vision_tokens(model, made, wanted, prefused)
    layers = [int(tokens) + prompt.text_tokens for tokens in vision]
    if min(layers) < 1:
        raise ProbeError(
            "cost",
            expected="at least one token in every LLM layer",
            got="no vision token and no text",
        )
    if wanted is not None and prefused is None:
        flops["projector"] *= vision[0] / max(
            made, 1
        )  # an encoder-side reducer selects before the projector
    flops["llm"], cache = _llm(model, layers, 1 if rows == "needed" else layers[-1])
    share = vision / np.array(layers)
    tokens = np.stack([vision, np.array(layers) - vision], axis=1)
    kinds = np.array([(cache * share).sum(), (cache * (1 - share)).sum()])
    reduced = wanted is not None and set(wanted) != {made}
    return Counted(flops, tokens, kinds, prefused.prefix if prefused is not None else 0, reduced)


def _before_llm(
    model: PreTrainedModel, prompt: PromptShape, rows: str
) -> tuple[dict[str, Flops], int, Prefused | None]:
    """Operations up to the LLM, the vision tokens that are made, and what a LLaVA-Mini did."""
    base: Any = model.base_model
    found = stacks(model)
    parts = {
        "vision_encoder": encoders(model),
        **{name: found[name].layers for name in found if name in COMPONENTS},
    }
    del parts["llm"]
    video = hasattr(base, "get_video_features")
    pixels = prompt.pixels(side_of(model.config), model.config, fuses(base), video, _empty)
    prefused = None
    with metered(parts) as flops:
        if fuses(base):
            prefused = Prefused.run(base, pixels["pixel_values"], prompt.text_tokens, rows)
            made = prefused.tokens
        else:
            made = _seen(base, pixels)
    within = sum((flops[name] for name in parts), np.zeros(len(OPERATIONS)))
    flops["projector"] = flops.pop("everything") - within
    return {name: flops.get(name, np.zeros(len(OPERATIONS))) for name in COMPONENTS}, made, prefused


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def _seen(base: Any, pixels: Mapping[str, Any]) -> int:
    """Encoder and projector, run; the vision tokens that come out. ProbeError for a model that
    takes other pixels.
    """
    see = base.get_video_features if "pixel_values_videos" in pixels else base.get_image_features
    try:
        seen = see(**pixels)
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        got = f"{type(base).__name__} ({' '.join(str(error).split())[:200]})"
        raise ProbeError(
            "cost", expected="a model that takes square views of images", got=got
        ) from error
    features = getattr(seen, "pooler_output", seen)
    return sum(
        part[..., 0].numel()
        for part in (features if isinstance(features, list | tuple) else [features])
    )


def _vision_tokens(
    model: PreTrainedModel, made: int, wanted: Sequence[int] | None, prefused: Prefused | None
) -> Int[np.ndarray, " layer"]:
    """Vision tokens in each LLM layer. Raises ProbeError for more than the model makes."""
    if wanted is None:
        layers = len(stacks(model)["llm"].layers)
        return np.array(prefused.layers(layers) if prefused is not None else [made] * layers)
    if max(wanted) > made:
        expected = f"0 to {made} vision tokens, which is what the model makes of this image"
        raise ProbeError(
            "cost",
            expected=expected,
            got=str(max(wanted)),
            fix="ask for a larger resolution= or more frames=",
        )
    return np.array(wanted)


def _llm(
    model: PreTrainedModel, layers: Sequence[int], head: int
) -> tuple[Flops, Float[np.ndarray, " layer"]]:
    """Operations of the LLM and its head, and what each layer's cache holds; each layer with tokens
    of its own.
    """
    decoder: Any = model.get_decoder()
    parts = {str(at): [layer] for at, layer in enumerate(stacks(model)["llm"].layers)}
    width = model.config.get_text_config().hidden_size
    total, cache = np.zeros(len(OPERATIONS)), np.zeros(len(layers))
    for tokens in set(layers):
        with metered(parts) as flops:
            output = decoder(inputs_embeds=_empty(1, tokens, width), use_cache=True)
        kept: Any = output_cache(output)
        for at in [at for at, those in enumerate(layers) if those == tokens]:
            total += flops[str(at)]
            cache[at] = kept.layers[at].keys.numel() + kept.layers[at].values.numel()
    with metered({}) as flops:
        head_of(model)(_empty(1, head, width))
    return total + flops["everything"], cache
