"""Operations and cache of each component, counted by running it on the meta device: shapes go
through, no numbers.

    counted = count(skeleton(config), prompt)
    counted.flops["llm"]         # [products with weights, products of queries, keys and values]

A multiply-add is two operations, as everywhere in this package. Products with weights and
attention's own are kept apart: papers often count only the former, as do counters that do not know
the fused kernel. Attention is counted over all pairs of tokens, masked ones included, as by
counters that do know it; a causal kernel needs half. Norms, activations, softmax and
interpolations are not counted.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.layer_arguments import output_cache, takes_cache
from probe.hooks.model_structure import stacks, text_decoder
from probe.measures.cost.cache_numbers import cached_numbers, with_cache
from probe.measures.cost.flop_meter import OPERATIONS, Flops, metered
from probe.measures.cost.meta_model import encoders, head_of
from probe.measures.cost.prompt_shape import OtherPixelsProbeError, PromptShape, side_of, tiles
from probe.models.llava_mini.vision import join_tiles, with_whole

COMPONENTS = ("vision_encoder", "projector", "compressor", "prefusion", "llm")


# What is run at most; the cost of more follows from it (a shorter run counts the same)
MOST_IMAGES = 64
MOST_TOKENS = 2**17  # longer than any sliding window, whose cache stops growing


@dataclass(frozen=True)
class Counted:
    """What a prefill takes.

    flops: by component. tokens: in each LLM layer, vision and text. cache: numbers that the LLM's
    cache holds, of vision and text. prefix: numbers before the LLM that later questions about the
    image reuse. reduced: whether fewer vision tokens were asked for than the model makes.
    """

    flops: dict[str, Flops]
    tokens: Int[np.ndarray, "layer kind"]
    cache: Float[np.ndarray, " kind"]
    prefix: int
    reduced: bool


@dataclass(frozen=True)
class VisionTokens:
    """What the LLM gets of the prompt's images.

    tokens: in all. first_layers, patches: LLM layers that also see all patches, and their number
    (LLaVA-Mini with fusion "in_llm"). prefix: numbers in the keys and values of pre-fusion's vision
    rows.
    """

    tokens: int
    first_layers: int = 0
    patches: int = 0
    prefix: int = 0


def count(
    model: PreTrainedModel,
    prompt: PromptShape,
    vision_tokens: Sequence[int] | None = None,
    rows: str = "all",
) -> Counted:
    """The cost of a prompt. `vision_tokens`: of each LLM layer, by default what the model makes.

    rows: "all" counts every row of every layer and a head at every position, as papers do; "needed"
    what `generate` runs: the head at the last position, and only keys and values of vision rows in
    the last layer of pre-fusion.
    """
    flops, made = _before_llm_of_any(model, prompt, rows)
    vision = _by_layer(model, made, vision_tokens)
    both = vision + prompt.text_tokens
    if both.min() < 1:
        raise ProbeError(
            "cost",
            expected="at least one token in every LLM layer",
            got="no vision token and no text",
        )
    if vision_tokens is not None and not fuses(model.base_model):
        # an encoder-side reducer selects before the projector
        flops["projector"] *= vision[0] / max(made.tokens, 1)
    head_rows = 1 if rows == "needed" else int(both[-1])
    flops["llm"], cache = of_llm(model, both.tolist(), head_rows)
    of_vision = (cache * vision / both).sum()
    return Counted(
        flops,
        tokens=np.stack([vision, both - vision], axis=1),
        cache=np.array([of_vision, cache.sum() - of_vision]),
        prefix=made.prefix,
        reduced=vision_tokens is not None and set(vision_tokens) != {made.tokens},
    )


def fuses(base: Any) -> bool:
    """Whether a model compresses its images and fuses text with them, as LLaVA-Mini does."""
    return hasattr(base, "prefusion")


def asked(base: Any, prompt: PromptShape) -> dict[str, Any]:
    """The question for each image, of a model that reads it before its LLM."""
    make = getattr(base, "question_inputs", None)
    return {} if make is None else make(prompt.views, prompt.frames, max(prompt.text_tokens, 1))


def _before_llm_of_any(
    model: PreTrainedModel, prompt: PromptShape, rows: str
) -> tuple[dict[str, Flops], VisionTokens]:
    """`_before_llm` for any number of images: all that is counted there grows by the same amount
    with each frame (each view of an image without tiles), so that of very many, two are run.
    """
    unit = "frames" if prompt.frames is not None else "views"
    number = prompt.frames or prompt.views
    grows_evenly = unit == "frames" or not (tiles(model.config) or fuses(model.base_model))
    if number <= MOST_IMAGES or not grows_evenly:
        return _before_llm(model, prompt, rows)
    flops_of_one, tokens_of_one = _before_llm(model, replace(prompt, **{unit: 1}), rows)
    flops_of_two, tokens_of_two = _before_llm(model, replace(prompt, **{unit: 2}), rows)
    more = number - 2

    def extended(one: Any, two: Any) -> Any:
        return two + more * (two - one)

    flops = {name: extended(flops_of_one[name], flops_of_two[name]) for name in COMPONENTS}
    tokens = map(extended, astuple(tokens_of_one), astuple(tokens_of_two))
    return flops, VisionTokens(*tokens)


def _before_llm(
    model: PreTrainedModel, prompt: PromptShape, rows: str
) -> tuple[dict[str, Flops], VisionTokens]:
    """Operations up to the LLM, and the vision tokens that it gets."""
    base: Any = model.base_model
    parts: dict[str, Sequence[nn.Module]] = {"vision_encoder": encoders(model)}
    for name, stack in stacks(model).items():
        if name in ("compressor", "prefusion"):
            parts[name] = stack.layers
    video = hasattr(base, "get_video_features")
    pixels = prompt.pixels(side_of(model.config), model.config, fuses(base), video, _empty)
    pixels |= asked(base, prompt)
    with metered(parts) as flops:
        if not fuses(base):
            made = VisionTokens(_encoded(base, pixels))
        elif base.config.fusion == "in_llm":
            made = _compressed(base, pixels["pixel_values"])
        else:
            made = _fused(base, pixels["pixel_values"], prompt.text_tokens, rows)
    none = np.zeros(len(OPERATIONS))
    flops["projector"] = flops.pop("everything") - sum(flops.values(), none)
    return {name: flops.get(name, none) for name in COMPONENTS}, made


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def _encoded(base: Any, pixels: Mapping[str, Any]) -> int:
    """Runs encoder and projector; the vision tokens that come out. Raises ProbeError for a model
    that takes other pixels.
    """
    name = "get_video_features" if "pixel_values_videos" in pixels else "get_image_features"
    method: Any = getattr(base, name, None)
    if reason := _other_inputs(method, pixels):
        raise OtherPixelsProbeError(f"{type(base).__name__}, {reason}")
    try:
        output = method(**pixels)
    except Exception as error:  # a model's own code, given pixels that it may not take
        reason = f"whose {name} refuses them ({' '.join(str(error).split())[:200]})"
        if "meta tensor" in str(error).lower():
            reason = "which looks at values, where only shapes are counted"
        raise OtherPixelsProbeError(f"{type(base).__name__}, {reason}") from error
    features = getattr(output, "pooler_output", output)
    if features is None:
        raise OtherPixelsProbeError(f"{type(base).__name__}, which projects its features later")
    images = features if isinstance(features, list | tuple) else [features]
    return sum(image[..., 0].numel() for image in images)


def _other_inputs(method: Any, pixels: Mapping[str, Any]) -> str:
    """What keeps a method from making vision tokens of these pixels, "" for nothing."""
    if method is None:
        return "whose words read the image by cross-attention"
    others = [
        name
        for name, parameter in inspect.signature(method).parameters.items()
        if name not in pixels
        and (name.endswith("grid_thw") or parameter.default is parameter.empty)
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    return f"which also takes {', '.join(others)}" if others else ""


def _fused(base: Any, views: Tensor, words: int, rows: str) -> VisionTokens:
    """Runs a LLaVA-Mini's encoder, compressor and pre-fusion. `views`: (frame, view, 3, height,
    width); `rows`: see `count`.
    """
    vision, tokens = base.look(views)
    frames, patches, width = vision.shape
    made = tokens.shape[0] * tokens.shape[1]
    along = base.tokens_along  # compressed tokens that go through pre-fusion
    layers = base.prefusion.layers
    if not len(layers) or not along + words:
        return VisionTokens(made)
    text = _empty(frames, along + words, width)
    visible = torch.ones(text.shape[:2], dtype=torch.bool, device=vision.device)
    if rows == "all":
        base.prefusion(vision, text, visible)
    else:
        outputs = base.config.compression == "none" and base.config.fusion == "released"
        prefix, _ = base.prefusion.see(vision, outputs=outputs)
        base.prefusion.fuse(prefix, text, visible)
    attentions = [layer.self_attn for layer in layers]
    of_a_row = sum(each.k_proj.out_features + each.v_proj.out_features for each in attentions)
    return VisionTokens(made, prefix=frames * patches * of_a_row)


def _compressed(base: Any, views: Tensor) -> VisionTokens:
    """The same where the LLM's first layers do the fusion: they run on all patches, and on
    placeholders of the compressed tokens.
    """
    patches = base.patches(views)
    grid = join_tiles(patches)
    vision = base.multi_modal_projector(with_whole(grid, patches))
    if base.config.compression != "none":
        base.compress(vision[:, : grid.shape[1]])  # rows as they are after the first layers
    return VisionTokens(
        tokens=len(views) * base.config.tokens_per_frame(views.shape[1]),
        first_layers=base.config.num_prefusion_layers,
        patches=vision.shape[0] * vision.shape[1],
    )


def _by_layer(
    model: PreTrainedModel, made: VisionTokens, wanted: Sequence[int] | None
) -> Int[np.ndarray, " layer"]:
    """Vision tokens in each LLM layer. Raises ProbeError for more than the model makes."""
    if wanted is None:
        vision = np.full(len(stacks(model)["llm"].layers), made.tokens)
        vision[: made.first_layers] += made.patches
        return vision
    if max(wanted) > made.tokens:
        raise ProbeError(
            "cost",
            expected=f"0 to {made.tokens} vision tokens, as many as the model makes of this image",
            got=str(max(wanted)),
            fix="ask for a larger resolution= or more frames=",
        )
    return np.array(wanted)


def of_llm(
    model: PreTrainedModel, tokens: Sequence[int], head_rows: int
) -> tuple[Flops, Float[np.ndarray, " layer"]]:
    """Operations of the LLM and its head, and the numbers in each layer's cache. `tokens`: of each
    layer.
    """
    width = model.config.get_text_config().hidden_size
    total = np.zeros(len(OPERATIONS))
    cache = np.zeros(len(tokens))
    for number in set(tokens):  # one run of the whole stack gives all layers of this length
        flops, filled = _layers_of_any(model, number)
        chosen = np.array(tokens) == number
        total += flops[chosen].sum(0)
        cache[chosen] = filled[chosen]
    with metered({}) as head:
        head_of(model)(_empty(1, head_rows, width))
    return total + head["everything"], cache


def _layers_of_any(
    model: PreTrainedModel, tokens: int
) -> tuple[Float[np.ndarray, "layer operation"], Float[np.ndarray, " layer"]]:
    """`_layers` for any number of tokens. Products with weights are proportional to it, those of
    attention to its square, and the cache grows evenly, so that of very many tokens fewer are run:
    a map of 10^9 x 10^9 is too large for torch, even without memory.
    """
    if tokens <= MOST_TOKENS:
        return _layers(model, tokens)
    _, cache_of_half = _layers(model, MOST_TOKENS // 2)
    flops, cache = _layers(model, MOST_TOKENS)
    times = tokens / MOST_TOKENS
    cache_of_more = 2 * (times - 1) * (cache - cache_of_half)
    return flops * [times, times**2], cache + cache_of_more


def _layers(
    model: PreTrainedModel, tokens: int
) -> tuple[Float[np.ndarray, "layer operation"], Float[np.ndarray, " layer"]]:
    """Operations of each LLM layer on a prompt of this length, and the numbers in its cache."""
    decoder: Any = text_decoder(model)
    layers = stacks(model)["llm"].layers
    width = model.config.get_text_config().hidden_size
    parts = {str(index): [layer] for index, layer in enumerate(layers)}

    def run(**given: Any) -> tuple[Mapping[str, Flops], Any]:
        with metered(parts) as flops:
            return flops, decoder(inputs_embeds=_empty(1, tokens, width), use_cache=True, **given)

    output = None
    try:
        flops, output = run()
    except RuntimeError:  # without a cache masks are made of numbers, of which there are none
        if not takes_cache(decoder):
            raise
    if given := with_cache(decoder, decoder.config, output):
        flops, output = run(**given)
    cache = cached_numbers(output_cache(output), len(layers))
    return np.stack([flops[str(index)] for index in range(len(layers))]), cache
