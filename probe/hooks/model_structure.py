"""Where things are in a model: its stacks of layers, their attention modules, its vision tokens.

Found by what a module can do, never by the name of a family, so that a user's subclass with other
module names is found as well. `subject/token_grid.py` says where a vision token lies in the image.

    stacks(model)["llm"].attention     # {"model.language_model.layers.0.self_attn": module, ...}
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.model_state import state_of

# An attention module has all attributes of one of these lines; the first line that a module of any
# layer of the list fits decides. Linear attention has a head_dim too, but is never causal or not.
ATTENTION_ATTRIBUTES = (
    ("config", "head_dim", "is_causal"),
    ("config", "num_heads", "is_causal"),
    ("config", "head_dim"),
    ("config", "num_heads"),
    ("num_heads",),
)
LAST_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "proj", "projection_layer", "dense")


@dataclass(frozen=True)
class LayerStack:
    """One group of layers; `attention` maps qualified names (as in `model.named_modules()`), in
    order of layers. `modules` has the name of each layer's attention, None where a layer has none:
    linear attention, a convolution, or attention to something else than its own tokens.
    """

    name: str
    layers: tuple[nn.Module, ...]
    attention: dict[str, nn.Module]
    modules: tuple[str | None, ...]

    def attention_of(self, layers: Iterable[int]) -> dict[str, nn.Module]:
        """The attention modules of these layers, where they have one."""
        names = [name for layer in layers if (name := self.modules[layer]) is not None]
        return {name: self.attention[name] for name in names}

    @property
    def without_attention(self) -> tuple[int, ...]:
        """The layers, from 0, that have no softmax attention among their own tokens."""
        return tuple(layer for layer, name in enumerate(self.modules) if name is None)


def stacks(model: PreTrainedModel) -> dict[str, LayerStack]:
    """The stacks of a model in the order in which they run: the encoder ("vision", if there is
    one), what stands between it and the LLM ("compressor" and "prefusion", LLaVA-Mini's), and the
    decoder ("llm").

    Layers after the one that the LLM reads (`vision_feature_layer`) are in the stack too: they do
    run. Raises ProbeError where no stack of layers, or no attention in a layer, can be found.
    """
    if not hasattr(model, "get_decoder"):
        raise ProbeError("model", expected="a transformers model", got=type(model).__name__)
    modules = {name: module for name, module in model.named_modules() if name}
    state = state_of(model)
    if state.structure is None or state.structure[0] != modules:  # the module tree has changed
        found = _find_stacks(model)
        state.structure = modules, found, _find_cross(model, found["llm"])
    return dict(state.structure[1])


def _find_stacks(model: PreTrainedModel) -> dict[str, LayerStack]:
    encoder = vision_encoder(model)
    vision = {} if encoder is None else {"vision": _stack("vision", model, encoder)}
    return {**vision, **_between(model), "llm": _stack("llm", model, text_decoder(model))}


def _between(model: PreTrainedModel) -> dict[str, LayerStack]:
    """The stacks between encoder and LLM: a compressor is one layer; pre-fusion may have none, and
    is left out then.
    """
    found = {}
    for name in ("compressor", "prefusion"):
        part = getattr(model.base_model, name, None)
        layers = tuple(getattr(part, "layers", [part])) if part is not None else ()
        if layers:
            found[name] = _of_layers(name, model, layers)
    return found


def text_decoder(model: PreTrainedModel) -> Any:
    """The LLM's layers with their embeddings and last norm, without its head; also where the LLM is
    a model with a head of its own inside (BLIP-2, Llama 4).
    """
    decoder: Any = model.get_decoder()
    if decoder.get_output_embeddings() is None:
        return decoder
    inner = decoder.get_decoder()
    return decoder.base_model if inner is decoder else inner


def vision_encoder(model: PreTrainedModel) -> nn.Module | None:
    """The module that turns pixels into features, None for a model of text only."""
    encoder = model.get_encoder(modality="image")
    return None if encoder is model or encoder is getattr(model, "base_model", None) else encoder


def vision_towers(model: PreTrainedModel) -> list[nn.Module]:
    """Every encoder of pixels in a model: two in Video-LLaVA, for images and for frames."""
    return [
        part
        for part in model.base_model.children()
        if getattr(part, "main_input_name", None) == "pixel_values"
    ]


def layers_of(encoder: nn.Module, model: nn.Module | None = None) -> LayerStack:
    """The layers of one vision encoder; names are those in the model, or else in the encoder."""
    return _stack("vision", model or encoder, encoder)


def _stack(name: str, model: nn.Module, part: nn.Module) -> LayerStack:
    """The longest list of layers with attention in a part of the model, by its number of
    parameters.
    """
    lists = [module for module in part.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ProbeError("model", expected=f"layers in its {name} stack", got=type(part).__name__)

    def size(layers: nn.ModuleList) -> tuple[bool, int]:
        return bool(_attention_of(layers)), sum(p.numel() for p in layers.parameters())

    return _of_layers(name, model, tuple(max(lists, key=size)))


def _of_layers(name: str, model: nn.Module, layers: tuple[nn.Module, ...]) -> LayerStack:
    names = {module: qualified for qualified, module in model.named_modules()}
    found = _attention_of(layers)
    usual = {(name, type(child)) for layer in found for name, child in layer.named_children()}
    for layer in layers:
        others = {(name, type(child)) for name, child in layer.named_children()} - usual
        if layer not in found and (not found or not others):  # nothing in place of attention
            raise ProbeError(
                "model",
                expected="an attention module (with a head_dim) in every layer",
                got=f"none in {names[layer]}",
            )
    modules = tuple(names[found[layer]] if layer in found else None for layer in layers)
    attention = {names[module]: module for module in found.values()}
    return LayerStack(name, layers, attention, modules)


def _attention_of(layers: Iterable[nn.Module]) -> dict[nn.Module, nn.Module]:
    """The attention of each layer among its own tokens, for the layers that have one."""
    for attributes in ATTENTION_ATTRIBUTES:
        found = {}
        for layer in layers:
            for name, module in layer.named_modules():
                fits = module is not layer and all(hasattr(module, each) for each in attributes)
                if fits and not _is_cross(name, module):
                    found.setdefault(layer, module)
        if found:
            return found
    return {}


def _is_cross(name: str, module: nn.Module) -> bool:
    """Whether a module attends to other tokens than those that it is called with."""
    own_name = name.rsplit(".", 1)[-1].lower()
    return bool(getattr(module, "is_cross_attention", False)) or "cross" in own_name


def cross_attention(model: PreTrainedModel) -> dict[int, tuple[str, nn.Module]]:
    """For each layer of the LLM that reads the image by cross-attention (Mllama, Idefics): the
    qualified name of that module, and the module. Empty where vision tokens stand among the words.
    """
    stacks(model)
    structure = state_of(model).structure
    assert structure is not None
    return structure[2]


def _find_cross(model: PreTrainedModel, llm: LayerStack) -> dict[int, tuple[str, nn.Module]]:
    found: dict[int, tuple[str, nn.Module]] = {}
    names = {module: qualified for qualified, module in model.named_modules()}
    for blocks in text_decoder(model).modules():
        if not isinstance(blocks, nn.ModuleList):
            continue
        interval = -(-len(llm.layers) // max(1, len(blocks)))  # gated blocks before each n-th layer
        for index, block in enumerate(blocks):
            for name, module in block.named_modules():
                projects = any(hasattr(module, each) for each in ("k_proj", "key"))
                if module is not block and projects and _is_cross(name, module):
                    found[index * interval] = (names[module], module)
    return dict(sorted(found.items()))


def output_projection(attention: nn.Module) -> nn.Linear:
    """The linear map that an attention module ends in (W_O): by its usual names, else the last one
    it owns.

    Raises ProbeError where it is not a plain Linear (in an adapter, packed to 4 bits): its weight
    is not what acts.
    """
    projection = projection_module(attention)
    if not isinstance(projection, nn.Linear) or not _holds_numbers(projection):
        kind = "none" if projection is None else type(projection).__name__
        raise ProbeError(
            "contribution",
            expected="a plain linear output projection",
            got=f"{kind} in {type(attention).__name__}",
            fix="merge the adapter, or load the model without quantization",
        )
    return projection


def projection_module(attention: nn.Module) -> nn.Module | None:
    """The module that mixes an attention module's heads (W_O), whatever its class; None where none
    is found.
    """
    children = dict(attention.named_children())
    named = [children[name] for name in OUTPUT_PROJECTIONS if name in children]
    linear = [child for child in children.values() if isinstance(child, nn.Linear)]
    return next(iter(named or linear[-1:]), None)


def last_norm(called: str, model: PreTrainedModel) -> nn.Module:
    """The decoder's norm before the head. Raises ProbeError where it has none."""
    decoder: Any = text_decoder(model)
    for name in LAST_NORMS:
        if hasattr(decoder, name):
            return getattr(decoder, name)
    raise ProbeError(called, expected="a decoder with a last norm", got=type(decoder).__name__)


def _holds_numbers(linear: nn.Linear) -> bool:
    """Whether the weight is the matrix itself, and not packed or scaled numbers of it."""
    shape = linear.out_features, linear.in_features
    return linear.weight.dtype in PLAIN_DTYPES and tuple(linear.weight.shape) == shape


def check_projections(attention: Iterable[nn.Module]) -> None:
    """Raises ProbeError, before anything runs, where the contribution of one of these modules can't
    be had. Those that only return their weights (without a config) have none anyway.
    """
    for module in attention:
        if hasattr(module, "config"):
            output_projection(module)


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """The names of the adapters (LoRA and others, as peft adds them) that act in a forward; none
    where they are disabled.
    """
    names: dict[str, None] = {}
    for module in model.modules():
        active = getattr(module, "active_adapters", None)
        if isinstance(active, list) and getattr(module, "disable_adapters", True) is False:
            names |= dict.fromkeys(active)
    return tuple(names)


def image_token_id(model: PreTrainedModel) -> int:
    """The id that stands for vision tokens in `input_ids`: the config's, or else the processor's
    (`load` notes it). Raises ProbeError for a model that has none.
    """
    config = getattr(model, "config", None)
    for name in ("image_token_id", "image_token_index"):
        token = getattr(config, name, None)
        if isinstance(token, int):
            return token
    noted = state_of(model).image_token if isinstance(model, nn.Module) else None
    if noted is not None:
        return noted
    raise ProbeError(
        "model",
        expected="a vision-language model, whose config names an image token",
        got=f"{type(model).__name__} without one",
    )


def vision_positions(
    model: PreTrainedModel, input_ids: Int[torch.Tensor, "batch token"]
) -> Bool[torch.Tensor, "batch token"]:
    """The positions that hold vision tokens (newline tokens of LLaVA-NeXT included); none in a
    model that reads images by cross-attention, where a placeholder is a word like others.
    """
    is_image = input_ids == image_token_id(model)
    structure = state_of(model).structure  # as it was found last: this runs in every forward
    reads_across = cross_attention(model) if structure is None else structure[2]
    return torch.zeros_like(is_image) if reads_across else is_image


def cls_tokens(model: PreTrainedModel) -> int:
    """Tokens that the vision encoder puts before its patches: 1 for CLIP, 0 for SigLIP."""
    encoder = vision_encoder(model)
    return 0 if encoder is None else first_patch(encoder)


def first_patch(encoder: nn.Module) -> int:
    """The position of an encoder's first patch: 1 after a class token, else 0."""
    return sum(
        name.split(".")[-1] in ("class_embedding", "cls_token")
        for name, _ in encoder.named_parameters()
    )


def max_positions(model: PreTrainedModel) -> int | None:
    """Tokens that the LLM has positions for, None where its config doesn't say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
