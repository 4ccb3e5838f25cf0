"""LLaMA-VID: each frame becomes a context token, in which the question asks the frame, and content
tokens, which pool its patches.

For every question about an image (or video), for each of its frames f:

    queries   = Q-Former(learned queries + the question's BERT tokens, cross-attending to LN(f))
    A         = softmax(W queries . key(v)^T / sqrt(width))      one head; v: f without class token
    context   = value(mean over queries of A v)                  one token
    content   = projector(v pooled): all patches (None), their mean ("mean"), or average pooling
                with kernel and stride side // g ("grid:g": (side // (side // g))^2 tokens, not g^2)

The frame's tokens are its context, then its content; frames follow each other. The class token is
dropped where the number of tokens is odd: a grid with an odd number of patches keeps it.

The tower is BLIP-2's EVA-ViT-g, its last block without the last norm, class token kept; or CLIP
(hidden_states[-2] without class token), then a projection stands before the Q-Former. The Q-Former
is InstructBLIP's.

Source: arXiv 2311.17043; dvlab-research/LLaMA-VID at b3d3ae2.
"""

import math
import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import InstructBlipQFormerConfig, InstructBlipVisionConfig

from probe.models.original import llava_names
from probe.models.original.folder import read_tokenizer
from probe.models.original.layout import Layout, Settings
from probe.models.original.shapes import Shapes
from probe.models.original.weight_files import CheckpointError
from probe.models.rivals.llama_vid_model import LlamaVidConfig, LlamaVidForConditionalGeneration
from probe.models.rivals.llama_vid_processing import LlamaVidProcessor
from probe.models.rivals.processing import processor_options, square_image_processor

NORM = "vlm_att_ln.weight"
EVA_HEAD_DIM = 88
EVA_G = {  # BLIP-2's EVA-ViT-g; Source: LAVIS, `create_eva_vit_g`
    "kind": "eva",
    "hidden_size": 16 * EVA_HEAD_DIM,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "mlp_ratio": 4.3637,
}
BERT = {  # bert-base-uncased with one more word
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "vocab_size": 30523,
    "max_position_embeddings": 512,
    "cross_attention_freq": 2,
}


RENAMES = {
    r"^model\.vlm_att_query$": "model.compressor.query",
    r"^model\.vlm_att_ln\.": "model.compressor.norm.",
    r"^model\.vlm_att_bert_proj\.": "model.compressor.project.",
    r"^model\.vlm_att_projector\.": "model.compressor.context.crossattention.query.",
    r"^model\.vlm_att_key_projector\.": "model.compressor.context.crossattention.key.",
    r"^model\.vlm_att_val_projector\.": "model.compressor.context.value.",
    r"^model\.vlm_att_encoder\.bert\.": "model.compressor.qformer.",
    r"(qformer\.embeddings\.)LayerNorm": r"\1layernorm",
    r"(qformer\..*attention\.)self\.": r"\1attention.",
    # EVA, as InstructBLIP's vision model; first where it is a file of its own
    r"^model\.(cls_token$|pos_embed$|patch_embed\.|blocks\.)": r"model.vision_tower.\1",
    r"vision_tower\.cls_token$": "vision_tower.embeddings.class_embedding",
    r"vision_tower\.pos_embed$": "vision_tower.embeddings.position_embedding",
    r"vision_tower\.patch_embed\.proj\.": "vision_tower.embeddings.patch_embedding.",
    r"vision_tower\.blocks\.": "vision_tower.encoder.layers.",
    r"(vision_tower\..*\.)norm(\d)\.": r"\1layer_norm\2.",
    r"(vision_tower\..*\.)attn\.proj\.": r"\1self_attn.projection.",
    r"(vision_tower\..*\.)attn\.qkv": r"\1self_attn.qkv",
}
OWN_FIELDS = (
    *("bert_type", "bert_config", "num_query", "compress_type", "max_token"),
    *("image_processor", "model_path"),
)


def _recognises(settings: Settings, names: Collection[str], folder: Path) -> bool:
    return any("vlm_att_" in name for name in names)


def _config(settings: Settings, vision_config: Settings, shapes: Shapes) -> LlamaVidConfig:
    is_eva = _is_eva(vision_config, shapes)
    norm = next((shape for name, shape in shapes.items() if name.endswith(NORM)), None)
    width = vision_config["hidden_size"] if norm is None else norm[0]
    fields = llava_names.shared_fields(settings, vision_config, OWN_FIELDS)
    if is_eva:
        fields["vision_config"] = _eva_config(vision_config)
    return LlamaVidConfig(
        **fields,
        qformer_config=_qformer_config(settings.get("bert_config", BERT), width),
        num_query=settings.get("num_query", 32),
        compress_type=settings.get("compress_type"),
        qformer_width=width,
        has_cls=is_eva,
    )


def _is_eva(vision_config: Settings, shapes: Shapes) -> bool:
    if "kind" in vision_config:
        return vision_config["kind"] == "eva"
    has_blocks = any(".blocks." in name for name in shapes)
    return has_blocks or "clip" not in str(vision_config.get("model_type", ""))


def _tower(settings: Settings, shapes: Shapes) -> Settings | None:
    """EVA-ViT-g, which the authors' settings name only; sizes from its tensors, where these are in
    the checkpoint.
    """
    if "eva" not in str(settings.get("mm_vision_tower", "")).lower():
        return None
    side = 336 if "336" in str(settings.get("image_processor", "")) else 224
    found = {name.rpartition("vision_tower.")[2]: shape for name, shape in shapes.items()}
    if "pos_embed" not in found:
        return EVA_G | {"image_size": side}
    _, positions, width = found["pos_embed"]
    patch = found["patch_embed.proj.weight"][-1]
    blocks = {name.split(".")[1] for name in found if name.startswith("blocks.")}
    return {
        "kind": "eva",
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": max(width // EVA_HEAD_DIM, 1),
        "image_size": math.isqrt(positions) * patch,
        "patch_size": patch,
        "mlp_ratio": found["blocks.0.mlp.fc1.weight"][0] / width,
    }


def _eva_config(fields: Mapping[str, Any]) -> InstructBlipVisionConfig:
    width = fields["hidden_size"]
    taken = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    return InstructBlipVisionConfig(
        **{name: fields[name] for name in taken},
        intermediate_size=int(width * fields.get("mlp_ratio", EVA_G["mlp_ratio"])),
        layer_norm_eps=fields.get("layer_norm_eps", 1e-6),
    )


def _qformer_config(fields: Mapping[str, Any], width: int) -> InstructBlipQFormerConfig:
    others = {name: value for name, value in fields.items() if name != "cross_attention_freq"}
    every = fields.get("cross_attention_freq", 2)
    return InstructBlipQFormerConfig(
        **others, cross_attention_frequency=every, encoder_hidden_size=width
    )


def _with_key_biases(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EVA has biases of queries and values; with zeros for keys they are one tensor."""
    joined = dict(state_dict)
    for name in state_dict:
        match = re.fullmatch(r"(.*\.attn\.)q_bias", name)
        if match is None:
            continue
        if f"{match[1]}v_bias" not in joined:
            raise CheckpointError(f"{match[1]}v_bias in the file of {name}", "none")
        query = joined.pop(name)
        value = joined.pop(f"{match[1]}v_bias")
        joined[f"{match[1]}qkv.bias"] = torch.cat([query, torch.zeros_like(value), value])
    return joined


BERT_FOLDERS = ("question_tokenizer", "bert-base-uncased")  # in a checkpoint's folder
BERT_NAME = "bert-base-uncased"  # what the authors' code asks the hub for


def _processor(
    config: LlamaVidConfig, settings: Settings, tokenizer: Any, folders: list[Path]
) -> LlamaVidProcessor:
    options = processor_options(config, settings)
    questions = _question_tokenizer(folders)
    return LlamaVidProcessor(square_image_processor(config), tokenizer, questions, **options)


def _question_tokenizer(folders: list[Path]) -> Any:
    """BERT's, which the authors' code fetches by name: beside the checkpoint, or in the hub's cache
    on this machine. Raises CheckpointError where it is in neither.
    """
    found = [folder / name for folder in folders for name in BERT_FOLDERS]
    found = [folder for folder in found if folder.is_dir()]
    try:
        return read_tokenizer(found[0] if found else Path(BERT_NAME), truncation_side="left")
    except CheckpointError as error:
        expected = f"BERT's tokenizer in the folder {BERT_NAME} inside the checkpoint's"
        raise CheckpointError(expected, error.got) from error


LAYOUT = Layout(
    "LLaMA-VID",
    LlamaVidForConditionalGeneration,
    _recognises,
    _config,
    partial(llava_names.renamed, own=RENAMES),
    _processor,
    joined=_with_key_biases,
    tower=_tower,
)
from_original = LAYOUT.from_original
