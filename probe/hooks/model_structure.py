"""Where things are in a model: its stacks of layers, their attention modules, its vision tokens.

Found by what a module can do, never by the name of a family, so that a user's subclass with other
module names is found as well. `subject/token_grid.py` says where a vision token lies in the image.

    stacks(model)["llm"].attention     # {"model.language_model.layers.0.self_attn": module, ...}
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import nn
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.image_readers import (
    COMPRESSOR,
    CROSS,
    chained_projection,
    gate_of,
    gated_cross_attention,
    gated_projection,
    learned_compressor,
)
from probe.hooks.layer_stack import (
    LayerStack,
    cross_attention_of,
    largest_stack,
    multihead_attention,
    stack_of_layers,
)
from probe.hooks.model_state import state_of
from probe.hooks.packed_weights import plain_linear

LAST_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "embedding_norm")
PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
QUERY_KEY_VALUE = {"query", "key", "value"}  # all that a module without such a projection has
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "proj", "projection_layer", "dense")


def stacks(model: PreTrainedModel) -> dict[str, LayerStack]:
    """The stacks of a model in the order in which they run.

        vision         the encoder of images
        vision_video   a second encoder, for frames (Video-LLaVA)
        compressor     what makes fewer tokens of patches: LLaVA-Mini's, Q-Formers, perceivers
        prefusion      LLaVA-Mini's
        cross          the LLM's cross-attention to the image (Mllama, Idefics)
        llm            the decoder

    A model has those it has; "llm" always. `other_encoders.py` finds encoders that are in none.
    Layers after the one that the LLM reads (`vision_feature_layer`) are in the stack too: they do
    run. Raises ProbeError where no stack of layers, or no attention in a layer, can be found.
    """
    if not hasattr(model, "get_decoder"):
        raise ProbeError("model", expected="a transformers model", got=type(model).__name__)
    modules = {name: module for name, module in model.named_modules() if name}
    state = state_of(model)
    if state.structure is None or state.structure[0] != modules:  # the module tree has changed
        state.structure = modules, _find_stacks(model)
    return dict(state.structure[1])


def _find_stacks(model: PreTrainedModel) -> dict[str, LayerStack]:
    found: dict[str, LayerStack] = {}
    encoder, decoder = vision_encoder(model), text_decoder(model)
    if encoder is not None and (layers := _layers_seen(model, encoder)) is not None:
        found["vision"] = layers
    if (tower := video_tower(model)) is not None:
        found["vision_video"] = largest_stack("vision_video", model, tower, alike=True)
    found |= _between(model)
    llm = largest_stack("llm", model, decoder, nearest=True)
    cross = gated_cross_attention(model, decoder, len(llm.layers))
    if COMPRESSOR not in found:
        in_llm = [*llm.layers, *(() if cross is None else cross.layers)]  # Idefics' LLM has it all
        encoders = [part for part in (encoder, *vision_towers(model)) if part is not None]
        if compressor := learned_compressor(model, [*encoders, *in_llm]):
            found[COMPRESSOR] = compressor
    if cross is not None:
        found[CROSS] = cross
    return {**found, "llm": llm}


def _layers_seen(model: PreTrainedModel, encoder: nn.Module) -> LayerStack | None:
    """The stack of an encoder of images; None where it turns images into words of a codebook
    (Emu3), or has layers without attention that is known as such (SAM, MobileNet).
    """
    if hasattr(model.base_model, "get_image_tokens"):
        return None
    try:
        return largest_stack("vision", model, encoder, alike=True)
    except ProbeError:
        return None


def _between(model: PreTrainedModel) -> dict[str, LayerStack]:
    """The stacks between encoder and LLM of models that say so, LLaVA-Mini and its rivals: a
    compressor is one layer, or a Q-Former's; pre-fusion may have none, and is left out then.
    """
    found = {}
    for name in (COMPRESSOR, "prefusion"):
        part = getattr(model.base_model, name, None)
        layers = tuple(getattr(part, "layers", [part])) if part is not None else ()
        if layers:
            found[name] = stack_of_layers(name, model, layers, cross_attention_of(layers) or None)
    return found


def text_decoder(model: PreTrainedModel) -> Any:
    """The LLM's layers with their embeddings and last norm, without its head; also where the LLM is
    a model with a head of its own inside (BLIP-2, Llama 4).
    """
    decoder: Any = model.get_decoder()
    if decoder.get_output_embeddings() is None:
        return decoder
    inside = [part for part in decoder.children() if isinstance(part, PreTrainedModel)]
    candidates = (decoder.get_decoder(), decoder.base_model, *inside)  # Llama 4's are itself
    return next((part for part in candidates if part is not decoder), decoder)


def llm_with_head(model: PreTrainedModel) -> nn.Module | None:
    """The LLM that is a model with a head of its own inside (BLIP-2, Llama 4), if it is one."""
    parts = [part for part in model.children() if isinstance(part, PreTrainedModel)]
    heads = [part for part in parts if part.get_output_embeddings() is not None]
    return heads[0] if heads else None


def output_head(model: PreTrainedModel) -> Any:
    """The map from the LLM's states to words, None where there is none: the model's own, or that of
    the LLM inside it (Nemotron-H Omni).
    """
    head = model.get_output_embeddings()
    inside: Any = llm_with_head(model) if head is None else None
    return head if inside is None else inside.get_output_embeddings()


def vision_encoder(model: PreTrainedModel) -> nn.Module | None:
    """The module that turns pixels into features, None for a model of text only."""
    encoder = model.get_encoder(modality="image")
    if encoder is not model and encoder is not getattr(model, "base_model", None):
        return encoder
    towers = vision_towers(model)  # under a name that transformers does not look for
    return towers[0] if towers else None


def vision_towers(model: PreTrainedModel) -> list[nn.Module]:
    """Every encoder of pixels in a model: two in Video-LLaVA, for images and for frames."""
    return [
        part
        for part in model.base_model.children()
        if getattr(part, "main_input_name", None) == "pixel_values"
    ]


def video_tower(model: PreTrainedModel) -> nn.Module | None:
    """The encoder of frames, where a model has one beside that of images."""
    for name, part in model.base_model.named_children():
        if "video" in name and part in vision_towers(model) and part is not vision_encoder(model):
            return part
    return None


def layers_of(encoder: nn.Module, model: nn.Module | None = None) -> LayerStack:
    """The layers of one vision encoder; names are those in the model, or else in the encoder."""
    return largest_stack("vision", model or encoder, encoder, alike=True)


def cross_attention(model: PreTrainedModel) -> dict[int, tuple[str, nn.Module]]:
    """For each layer of the LLM that reads the image by cross-attention (Mllama, Idefics): the
    qualified name of that module, and the module. Empty where vision tokens stand among the words.
    """
    return _of_cross(stacks(model))


def _of_cross(found: dict[str, LayerStack]) -> dict[int, tuple[str, nn.Module]]:
    cross = found.get(CROSS)
    if cross is None or cross.numbers is None:
        return {}
    return dict(zip(cross.numbers, cross.attention.items(), strict=True))


def output_projection(attention: nn.Module) -> nn.Linear:
    """The linear map that an attention module ends in (W_O): by its usual names, else the last one
    it owns.

    Raises ProbeError where it is not a plain Linear (in an adapter, packed to 4 bits): its weight
    is not what acts.
    """
    projection = projection_module(attention)
    if projection is not None and getattr(projection, "use_clipped_linears", None) is False:
        projection = projection.get_submodule("linear")  # Gemma 4: a clip that is switched off
    if not isinstance(projection, nn.Linear) or not _holds_numbers(projection):
        kind = "none" if projection is None else type(projection).__name__
        raise ProbeError(
            "contribution",
            expected="a plain linear output projection",
            got=f"{kind} in {type(attention).__name__}",
            fix="merge the adapter, or load the model without quantization",
        )
    return plain_linear(projection)


def projection_module(attention: nn.Module) -> nn.Module | None:
    """The module that mixes an attention module's heads (W_O), whatever its class; None where none
    is found.
    """
    children = dict(attention.named_children())
    named = [children[name] for name in OUTPUT_PROJECTIONS if name in children]
    if named:
        return named[0]
    linear = [
        [part for part in child.modules() if isinstance(part, nn.Linear)]
        for child in children.values()
    ]
    last = next((parts for parts in reversed(linear) if parts), [])
    return last[0] if len(last) == 1 else None  # also one in a sequence, with a dropout


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


def projection_in(stack: LayerStack, attention: nn.Module) -> nn.Linear:
    """The linear map by which an attention module of a stack reaches the residual stream: its own,
    that of the module it stands in (a Q-Former's `output`), its block's gate included.
    """
    layer = stack.layer_of(attention)
    holder = attention
    if {name for name, _ in attention.named_children()} == QUERY_KEY_VALUE:
        holders = (part for part in layer.modules() if attention in set(part.children()))
        holder = getattr(next(holders), "output", attention)
    projection = output_projection(holder)
    inside = multihead_attention(holder)
    if inside is not None and inside is not holder:
        return chained_projection(inside.out_proj, projection)
    return gated_projection(projection, gate_of(layer)) if stack.name == CROSS else projection


def check_projections(stack: LayerStack) -> None:
    """Raises ProbeError, before anything runs, where the contribution of one of a stack's modules
    can't be had. Those that only return their weights (without a config) have none anyway.
    """
    for module in stack.attention.values():
        if hasattr(module, "config"):
            projection_in(stack, module)


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


def video_token_id(model: nn.Module) -> int | None:
    """The id that stands for the vision tokens of a video, None where it is that of an image."""
    config: Any = model.config
    for name in ("video_token_id", "video_token_index"):
        token = getattr(config, name, None)
        if isinstance(token, int):
            return token
    return None


def placeholder_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that stand for vision tokens: of images and, if it is another, of videos."""
    ids = image_token_id(model), video_token_id(model)
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def vision_positions(
    model: PreTrainedModel, input_ids: Int[torch.Tensor, "batch token"]
) -> Bool[torch.Tensor, "batch token"]:
    """The positions that hold vision tokens (newline tokens of LLaVA-NeXT included); none in a
    model that reads images by cross-attention, where a placeholder is a word like others.
    """
    image_token, *others = placeholder_ids(model)
    is_image = input_ids == image_token
    for token in others:
        is_image = is_image | (input_ids == token)
    structure = state_of(model).structure  # as it was found last: this runs in every forward
    reads_across = CROSS in (stacks(model) if structure is None else structure[1])
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
