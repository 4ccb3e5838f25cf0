"""Encoders of images that a model runs and that are not its stack "vision".

DeepSeek-VL's hybrid runs two on every image: its stack "vision" is the one that transformers calls
the model's encoder; the other (SAM, whose windowed attention computes its softmax itself) is in no
stack. DeepSeek-OCR 2 has SAM inside its encoder, before the layers of the stack. GOT-OCR has SAM
alone, Emu3 a quantizer to words of a codebook: such a model has no stack "vision". `probe describe`
names them, so that nobody takes the record for all that reads the image.

    other_encoders(model, inputs)       # {"high_res_vision_model": the module}
"""

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probe.hooks.block_threads import add_hook, only_this_thread
from probe.hooks.model_structure import stacks, vision_encoder, vision_towers


@only_this_thread()
@torch.no_grad()
def other_encoders(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Those that run on these inputs and have no layer in any stack, by their names in the model.
    One that does not run (Janus' encoder of images to be drawn) is none. Costs one forward, and
    only where a model has encoders outside of its stacks.
    """
    in_stacks = {layer for stack in stacks(model).values() for layer in stack.layers}
    towers = {vision_encoder(model), *vision_towers(model)} - {None}
    outside = [tower for tower in towers if not in_stacks & set(tower.modules())]
    for tower in towers - {*outside}:
        outside += [part for part in _inside(tower) if not in_stacks & set(part.modules())]
    if not outside:
        return {}
    ran: set[nn.Module] = set()

    def note(tower: nn.Module, module: nn.Module, args: Any) -> None:
        ran.add(tower)

    with ExitStack() as undo:
        for tower in outside:
            for part in tower.modules():  # a tower may be run by one of its methods
                add_hook(undo, part.register_forward_pre_hook, partial(note, tower))
        model(**inputs, use_cache=False)
    return {name: module for name, module in model.base_model.named_modules() if module in ran}


def _inside(tower: Any) -> list[nn.Module]:
    """The encoders of pixels that an encoder consists of: models with layers of their own."""
    return [
        part
        for part in tower.modules()
        if part is not tower
        and isinstance(part, PreTrainedModel)
        and next(iter(inspect.signature(part.forward).parameters), "") == "pixel_values"
        and any(isinstance(each, nn.ModuleList) for each in part.modules())
    ]
