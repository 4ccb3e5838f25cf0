"""What the authors' layouts of all LLaVA's descendants share: names of tensors, and the fields of
config.json.

    list(renamed("model.mm_projector.0.bias", tensor))
    [("model.multi_modal_projector.linear_1.bias", tensor)]

Tensors that no current model has (rotary tables and position ids of old versions, CLIP's text
encoder) are dropped; packed projections of attention are split.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

RENAMES = {  # the authors' name -> ours, after those of a model's own
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
    r"^model\.vision_model\.": "model.vision_tower.vision_model.",  # CLIP on its own
}
DISCARDED = re.compile(
    r"rotary_emb\.inv_freq$|position_ids$"
    r"|^model\.(text_model\.|(visual|text)_projection|logit_scale$)"
)
NOT_OF_THE_LLM = re.compile(  # fields of the authors' config.json that LlamaConfig does not take
    r"mm_|tokenizer_|image_|transformers_version|torch_dtype|^(model_type|architectures)$"
)
# The vision tower that the authors' folders give by name only.
# Source: config.json of openai/clip-vit-large-patch14-336.
CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}


def renamed(
    name: str, tensor: Tensor, own: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Native names for one of the authors' tensors (meta tensors will do), whatever prefix it was
    saved with. `own`: renames of one model, tried first.

    >>> import torch
    >>> [name for name, _ in renamed("base_model.model.model.mm_projector.2.bias", torch.zeros(1))]
    ['model.multi_modal_projector.linear_2.bias']
    """
    name = re.sub(r"^(base_model\.|model\.|module\.)*", "model.", name)
    name = name.replace("model.lm_head.", "lm_head.")
    if DISCARDED.search(name):
        return
    for pattern, native in (dict(own or {}) | RENAMES).items():
        name = re.sub(pattern, native, name)
    if ".in_proj_" not in name:
        yield name, tensor
        return
    for part, rows in zip("qkv", tensor.chunk(3), strict=True):
        # cloned, because a part that shares memory with the others cannot be saved
        yield name.replace("in_proj_", f"{part}_proj."), rows.clone()


def text_config(config: Mapping[str, Any], others: tuple[str, ...] = ()) -> LlamaConfig:
    """The LLM's fields of the authors' config.json. `others`: fields of the model's own."""
    fields = {
        name: value
        for name, value in config.items()
        if not NOT_OF_THE_LLM.search(name) and name not in others
    }
    return LlamaConfig(**fields)


def shared_fields(
    config: Mapping[str, Any], vision_config: Mapping[str, Any], others: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The fields that every native config has, for a CLIP tower."""
    vision = {
        name: value for name, value in vision_config.items() if name not in ("model_type", "kind")
    }
    return {
        "vision_config": CLIPVisionConfig(**vision),
        "text_config": text_config(config, others),
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }
