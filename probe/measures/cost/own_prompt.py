"""The cost of a prompt as a model's own processor makes it: for models whose config does not say
what becomes of an image (own resolution, tiles, resamplers, cross-attention).

    prompt = OwnPrompt.of(subject, text_tokens=43, resolution=(600, 800))
    counted = count_own(skeleton(subject.model.config), prompt)

The model's whole forward runs on shapes (`shapes_only.py`) over these inputs, so that what is
counted is what it runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from probe.data.image import Video
from probe.errors import ProbeError, at_least
from probe.hooks.layer_arguments import output_cache
from probe.hooks.model_checks import require_untouched
from probe.hooks.model_structure import cross_attention, stacks, text_decoder
from probe.measures.cost.cache_numbers import cached_numbers, with_cache
from probe.measures.cost.flop_count import (
    COMPONENTS,
    Counted,
    of_llm,
)
from probe.measures.cost.flop_meter import OPERATIONS, metered
from probe.measures.cost.meta_model import encoders, head_of
from probe.measures.cost.prompt_shape import Resolution, height_and_width, square_size
from probe.measures.cost.shapes_only import ShapesOnly
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject

SIDE = 448  # pixels of an image of which nothing is said
GREY = (127, 127, 127)
WORD = "a"
TRIES = 3  # at a question of the length that was asked for


@dataclass(frozen=True)
class OwnPrompt:
    """One image, or a video of `frames`, with as many words as make `text_tokens` of all that is no
    vision token: chat template and markers included. `views`: of a frame.
    """

    height: int
    width: int
    views: int
    frames: int | None
    text_tokens: int
    inputs: Inputs

    @classmethod
    def of(
        cls,
        subject: Subject,
        text_tokens: int,
        resolution: Resolution | None = None,
        frames: int | None = None,
    ) -> "OwnPrompt":
        """With fewer words than the chat template and one word take, there are as many as these.

        Raises ProbeError for invalid sizes, and for a model under an intervention or a reducer.
        """
        require_untouched("cost", subject.model)
        at_least("cost", "text_tokens", text_tokens, 0)
        encoder = getattr(subject.model.config, "vision_config", None)
        height, width = height_and_width(resolution or square_size(encoder, "image_size") or SIDE)
        image = Image.new("RGB", (width, height), GREY)
        shown: Any = image
        if frames is not None:
            at_least("cost", "frames", frames, 1)
            takes_video = getattr(subject.processor, "video_processor", None) is not None
            shown = Video([image] * frames) if takes_video else [image] * frames
        words = 1
        inputs = None
        text = -1
        for _ in range(TRIES):
            inputs = subject.encode(shown, " ".join([WORD] * words))
            text = int((~inputs.types.vision).sum())
            if text == text_tokens or words + text_tokens - text < 1:
                break
            words += text_tokens - text
        assert inputs is not None
        grid = inputs.encoder_grid[0]
        views = len(set(zip(grid.image.tolist(), grid.tile.tolist(), strict=True)))
        return cls(height, width, max(1, views // (frames or 1)), frames, text, inputs)


def count_own(
    model: PreTrainedModel,
    prompt: OwnPrompt,
    vision_tokens: Sequence[int] | None = None,
    rows: str = "all",
) -> Counted:
    """The cost of the prompt. `model`: without weights; `vision_tokens` and `rows` as in
    `flop_count.count`, where fewer vision tokens are those that a method inside the LLM leaves:
    what comes before it stays the same.

    Raises ProbeError where the model's forward asks for numbers that only weights have, or can't
    run the prompt; for more vision tokens than it makes; and for any number where words read images
    by cross-attention.
    """
    stack = stacks(model)["llm"]
    across = cross_attention(model)
    made = int(prompt.inputs.types.vision.sum())
    _check_tokens(model, vision_tokens, made, prompt.text_tokens)
    flops, cache = _own_forward(model, prompt)
    head = flops.pop("head")
    length = made + prompt.text_tokens
    vision = np.full(len(stack.layers), made)
    if vision_tokens is None:
        head_rows = 1 if rows == "needed" else length
        flops["llm"] = flops["llm"] + head * head_rows / length
    else:
        vision = np.array(vision_tokens)
        both = vision + prompt.text_tokens
        head_rows = 1 if rows == "needed" else int(both[-1])
        flops["llm"], cache = of_llm(model, both.tolist(), head_rows)
    share = vision / (vision + prompt.text_tokens)  # of what the cache holds
    for layer in stack.without_attention:
        share[layer] = 1.0 if layer in across else 0.0
    of_vision = float((cache * share).sum())
    return Counted(
        flops,
        tokens=np.stack([vision, np.full_like(vision, prompt.text_tokens)], axis=1),
        cache=np.array([of_vision, cache.sum() - of_vision]),
        prefix=0,
        reduced=vision_tokens is not None and set(vision_tokens) != {made},
    )


def _check_tokens(
    model: PreTrainedModel, vision_tokens: Sequence[int] | None, made: int, text: int
) -> None:
    if vision_tokens is None:
        return
    if across := cross_attention(model):
        name, _ = next(iter(across.values()))
        raise ProbeError(
            "cost",
            expected="vision_tokens=None where no vision token stands among the words",
            got=f"{max(vision_tokens)}, of a model that reads images by cross-attention ({name})",
        )
    if max(vision_tokens) > made or min(vision_tokens) + text < 1:
        raise ProbeError(
            "cost",
            expected=f"0 to {made} vision tokens, as many as the model makes of this image",
            got=str(max(vision_tokens)),
            fix="ask for a larger resolution= or more frames=",
        )


def _own_forward(
    model: PreTrainedModel, prompt: OwnPrompt
) -> tuple[dict[str, Float[np.ndarray, " operation"]], Float[np.ndarray, " layer"]]:
    """Operations by component, the head's apart, and the numbers in each LLM layer's cache."""
    found = stacks(model)
    decoder = text_decoder(model)
    parts: dict[str, Sequence[nn.Module]] = {
        "vision_encoder": encoders(model),
        "compressor": found["compressor"].layers if "compressor" in found else (),
        "llm": [decoder],
        "head": [head_of(model)],
    }
    caches: list[Any] = []

    def note(module: Any, args: tuple, output: Any) -> None:
        caches.append(output_cache(output))

    inputs = {
        name: tensor.to("cpu", model.dtype) if tensor.is_floating_point() else tensor.cpu()
        for name, tensor in prompt.inputs.items()
    }
    with decoder.register_forward_hook(note), metered(parts) as flops, ShapesOnly():
        try:
            output = model(**inputs, use_cache=True)
        except Exception as error:  # a model's own code
            reason = " ".join(str(error).split())[:200]
            raise ProbeError(
                "cost",
                expected="a model whose forward can be run on shapes",
                got=f"{type(model).__name__} ({type(error).__name__}: {reason})",
            ) from error
    none = np.zeros(len(OPERATIONS))
    everything = flops.pop("everything")
    inside = {id(module) for module in decoder.modules()}
    for name in ("vision_encoder", "compressor", "head"):  # Idefics has them in its decoder
        if any(id(part) in inside for part in parts[name]):
            flops["llm"] = flops["llm"] - flops[name]
    flops["projector"] = everything - sum(flops.values(), none)
    by_component = {name: flops.get(name, none) for name in (*COMPONENTS, "head")}
    if caches[-1] is None and (given := with_cache(model, decoder.config, output)):
        with decoder.register_forward_hook(note), ShapesOnly():
            model(**inputs, use_cache=True, **given)
    if caches[-1] is None:
        kind = type(decoder).__name__
        raise ProbeError("cost", expected="a decoder that makes its cache", got=f"{kind} with none")
    return by_component, cached_numbers(caches[-1], len(found["llm"].layers))
