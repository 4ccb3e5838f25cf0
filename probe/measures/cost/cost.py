"""`cost`: what one prompt costs a model, counted from its config and, if asked, measured on this
machine.

    cost("tiny-llava")                                # or a hub id, a folder, a subject, a config
    cost(config, vision_tokens=64, text_tokens=40)    # an encoder-side reducer; LLaVA-Mini: 8 x 8
    cost(config, vision_tokens=[36] * 2 + [9] * 6)    # tokens of each LLM layer: FastV and the like
    cost(config, resolution=1000)                     # a larger image, in views
    cost(config, frames=100)                          # a video
    cost(subject, measure=5)                          # with latency and memory, five times
    cost(probe.load("Qwen/Qwen2.5-VL-3B-Instruct"), resolution=(600, 800))    # its own resolution

`dataset.py` describes what is returned.
"""

import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from transformers import PreTrainedModel

from probe.errors import ProbeError, at_least, one_of
from probe.hooks.block_threads import only_this_thread
from probe.measures.cost.dataset import assemble
from probe.measures.cost.flop_count import COMPONENTS, Counted, count
from probe.measures.cost.flop_meter import OPERATIONS
from probe.measures.cost.formula import formula_flops
from probe.measures.cost.meta_model import (
    Described,
    described,
    parameters,
    require_square_views,
    skeleton,
)
from probe.measures.cost.own_prompt import OwnPrompt, count_own
from probe.measures.cost.prompt_shape import (
    OtherPixelsProbeError,
    PromptShape,
    Resolution,
    Tokens,
    per_layer,
    prompt_of,
    sets_tokens,
    with_tokens,
)
from probe.measures.cost.timing import MOMENTS, inputs_of, measure_prefill, with_random_weights
from probe.subject.loading import load

TEXT_TOKENS = 43  # a short system prompt and a short question


@only_this_thread()
def cost(
    model: Any = "tiny-llava",
    vision_tokens: Tokens | None = None,
    text_tokens: int = TEXT_TOKENS,
    *,
    resolution: Resolution | None = None,
    frames: int | None = None,
    rows: Literal["all", "needed"] = "all",
    dtype: str | torch.dtype | None = None,
    measure: int = 0,
    name: str | None = None,
) -> xr.Dataset:
    """Operations by component, cache, and on request time and memory, of reading one prompt: a
    dataset of one case.

    model: a name (a shipped model, a folder, or a hub id: only the config is read), a subject, a
        model, or a config. Where the config does not say what becomes of an image (own resolution,
        resamplers, cross-attention), a subject is needed: its processor says it, and `text_tokens`
        are then all tokens but vision's, those of the chat template and of markers included.
    vision_tokens: what the LLM gets, in all or in each of its layers; by default what the model
        makes of the image. LLaVA-Mini compresses to this number; for other models a reducer is
        assumed to keep it before the projector.
    resolution: pixels of the image, a side or (height, width); by default those of a view, or 448.
    frames: of a video, in place of an image.
    rows: "all" counts as papers do, every row through every layer and the head; "needed" what
        `generate` runs.
    dtype: of weights and cache; by default the model's, float16 for a config that names none.
    measure: repeats of a measurement on this machine, 0 for none. A name is loaded with its
        weights; a config gets random ones, on the GPU if there is one.
    name: of the case.

    Raises ProbeError for a text-only model, invalid sizes, more vision tokens than the image
    makes, a number that LLaVA-Mini can't compress to, and a measurement that would need a reducer.
    """
    one_of("cost", "rows", rows, ("all", "needed"))
    at_least("cost", "measure, a number of repeats,", measure, 0)
    if measure and isinstance(model, str | os.PathLike):
        model = load(model, dtype=dtype)
    source = described(model, dtype)
    layers = per_layer(vision_tokens, source.config.get_text_config().num_hidden_layers)
    size = text_tokens, resolution, frames
    try:
        counted, shapes, prompt, config = _by_config(
            source.config, vision_tokens, layers, *size, rows
        )
    except OtherPixelsProbeError:
        if not hasattr(model, "processor"):
            raise
        config = source.config
        shapes = skeleton(source.config)
        prompt = OwnPrompt.of(model, *size)
        counted = count_own(shapes, prompt, layers, rows)
    values = _values(counted, shapes, source.dtype)
    device = "meta"
    if measure:
        runnable = _runnable(model, source, config, counted)
        if isinstance(prompt, OwnPrompt):
            inputs: Mapping[str, Any] = prompt.inputs
        else:
            inputs = inputs_of(runnable, prompt, int(counted.tokens[-1, 0]))
        values["latency"], values["memory"] = measure_prefill(runnable, inputs, measure)
        device = str(runnable.device)
    case = {
        "model": source.name,
        "revision": source.revision,
        "dtype": str(source.dtype).removeprefix("torch."),
        "device": device,
        "toy": source.toy,
        "vision_tokens": float(counted.tokens[:, 0].mean()),
        "text_tokens": prompt.text_tokens,
        "frames": prompt.frames or 1,
        "views": prompt.views,
        "height": prompt.height,
        "width": prompt.width,
    }
    labels: dict[str, Sequence[Any]] = {
        "component": COMPONENTS,
        "operation": OPERATIONS,
        "token_type": ("vision", "text"),
        "layer": range(len(counted.tokens)),
    }
    if measure:
        labels |= {"repeat": range(measure), "moment": MOMENTS}
    return assemble(name or source.name, case, labels, values, rows)


def _by_config(
    config: Any,
    vision_tokens: Tokens | None,
    layers: list[int] | None,
    text_tokens: int,
    resolution: Resolution | None,
    frames: int | None,
    rows: str,
) -> tuple[Counted, PreTrainedModel, PromptShape, Any]:
    """What the config alone says: the cost, the model without weights, the prompt, and the config
    that makes this number of vision tokens. Raises OtherPixelsProbeError where it doesn't say.
    """
    require_square_views(config)
    first = layers[0] if layers is not None else None
    changed = with_tokens(config, first, frames)
    prompt = prompt_of(changed, first, text_tokens, resolution, frames)
    shapes = skeleton(changed)
    # The config of a LLaVA-Mini already says one number, which may not hold in all layers.
    from_config = sets_tokens(changed) and isinstance(vision_tokens, Integral)
    counted = count(shapes, prompt, None if from_config else layers, rows)
    return counted, shapes, prompt, changed


def _values(counted: Counted, shapes: PreTrainedModel, dtype: torch.dtype) -> dict[str, Any]:
    text = shapes.config.get_text_config()
    tokens = counted.tokens.sum(1)
    weights = parameters(shapes)
    feed_forward = np.mean(text.intermediate_size).item()  # of each layer, in some (Gemma 3n)
    return {
        "flops": np.stack([counted.flops[component] for component in COMPONENTS]),
        "formula_flops": formula_flops(tokens.tolist(), text.hidden_size, feed_forward),
        "weights": dtype.itemsize
        * np.array([weights[component] for component in COMPONENTS], float),
        "llm_tokens": tokens.astype(float),
        "kv_cache": dtype.itemsize * counted.cache,
        "prefix_cache": float(dtype.itemsize * counted.prefix),
    }


def _runnable(model: Any, source: Described, config: Any, counted: Counted) -> PreTrainedModel:
    """The model to measure. Raises ProbeError where it would not run as it was counted."""
    if counted.reduced:
        raise ProbeError(
            "cost",
            expected="as many vision tokens as the model makes, to be measured",
            got="fewer",
            fix="leave measure= out",
        )
    if model is source.config:
        return with_random_weights(config, source.dtype)
    if config is not source.config:
        raise ProbeError(
            "cost",
            expected="the number of vision tokens that its weights compress to, to be measured",
            got="another",
            fix="pass the config: it is measured with random weights",
        )
    return model if isinstance(model, PreTrainedModel) else model.model
