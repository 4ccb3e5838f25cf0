"""The authors' names of tensors and fields of config.json, as far as the rivals share them.

All are LLaVA's with other parts between tower and LLM. Tensors that no current model has (rotary
tables, position ids of old versions) are dropped; packed projections of attention are split.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.initialization import no_init_weights

from probe.models.llava_mini.original_format import check_shapes
from probe.models.rivals.base import RivalConfig, RivalForConditionalGeneration

RENAMES = {  # the authors' name -> ours, after those of a rival
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
}
DISCARDED = re.compile(r"rotary_emb\.inv_freq$|position_ids$")
LLAMA_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def text_config(config: Mapping[str, Any]) -> LlamaConfig:
    """The LLM's fields of the authors' config.json."""
    fields = {name: config[name] for name in LLAMA_FIELDS if config.get(name) is not None}
    tied = config.get("tie_word_embeddings", False)
    return LlamaConfig(**fields, tie_word_embeddings=tied)


def native_fields(config: Mapping[str, Any], vision_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that every rival's config has, for a CLIP tower."""
    vision = {
        name: value for name, value in vision_config.items() if name not in ("model_type", "kind")
    }
    return {
        "vision_config": CLIPVisionConfig(**vision),
        "text_config": text_config(config),
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }


def build(
    kind: type[RivalForConditionalGeneration],
    config: RivalConfig,
    state_dict: Mapping[str, Tensor],
    renames: Mapping[str, str],
) -> Any:
    """The model with the authors' tensors, in eval mode and the dtype of its word embeddings; on
    the meta device if they are.

    Raises CheckpointError that names missing, surplus and misshapen tensors.
    """
    native: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        native |= renamed(name, tensor, renames)
    embeddings = native.get("model.language_model.embed_tokens.weight")
    dtype = torch.float32 if embeddings is None else embeddings.dtype
    device = "cpu" if embeddings is None else embeddings.device
    with torch.device(device), no_init_weights():
        model: Any = kind._from_config(config, dtype=dtype)
    level = "model.vision_tower.vision_model."  # a level that CLIP had before transformers 5.6
    if not any(name.startswith(level) for name in model.state_dict()):
        native = {name.replace(level, "model.vision_tower."): x for name, x in native.items()}
    if config.tie_word_embeddings:
        native.pop("lm_head.weight", None)
    check_shapes({name: tensor.shape for name, tensor in native.items()}, model)
    if torch.device(device).type != "meta":
        model.load_state_dict(native, strict=False)
    model.tie_weights()
    return model.eval()


def renamed(name: str, tensor: Tensor, renames: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Native names for one of the authors' tensors, whatever prefix it was saved with."""
    name = re.sub(r"^(base_model\.|model\.|module\.)*", "model.", name)
    name = name.replace("model.lm_head.", "lm_head.")
    if DISCARDED.search(name):
        return
    for pattern, native in (dict(renames) | RENAMES).items():
        name = re.sub(pattern, native, name)
    if ".in_proj_" not in name:
        yield name, tensor
        return
    for part, rows in zip("qkv", tensor.chunk(3), strict=True):
        yield name.replace("in_proj_", f"{part}_proj."), rows.clone()
