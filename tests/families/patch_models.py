"""Families of newer releases that read images at their own resolution, as patches one by one.

    model, processor = PATCH_FAMILIES["glm_ocr"]()

Those that this transformers does not have are left out by the tests.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.families.models import (
    BLOCKS,
    IMAGE_IDS,
    ROPE,
    VISION,
    Family,
    build,
    merged,
    modality,
    text,
)
from tests.families.processors import (
    BREAK,
    END,
    IMAGE,
    START,
    VIDEO,
    TinyProcessor,
    blocks,
    cells,
    planes,
)

GRID = {**BLOCKS, "num_position_embeddings": 64}
DEEPSTACK = {**GRID, "deepstack_visual_indexes": [0]}
NAVIT = {name: value for name, value in VISION.items() if name != "image_size"}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {  # keys and values by way of a few latent numbers: values have another width than keys
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
}
INDEXER = {"index_topk": 64, "index_head_dim": 8, "index_n_heads": 2}
LINEAR = {
    "head_dim": 16,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [1, 1, 0],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
    },
}
GLM_IDS = {
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": BREAK,
    "video_end_token_id": BREAK,
}
GLM_ROPE = {**ROPE, "partial_rotary_factor": 1.0}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

Pixels = Callable[[list], dict[str, torch.Tensor]]


def nothing(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {}


def patch_by_patch(
    class_name: str,
    model_type: str,
    pixels: Pixels = blocks,
    more: Callable[[torch.Tensor], dict[str, torch.Tensor]] = modality,
    attn: str = "sdpa",
    **fields: Any,
) -> Family:
    model = build(class_name, model_type, attn, **{**IMAGE_IDS, **fields})
    return model, TinyProcessor(merged(), pixels, more)


def once(images: list) -> dict[str, torch.Tensor]:
    """Patches by merged cells, each once in time."""
    tensors = blocks(images)
    twice = tensors["pixel_values"].view(len(tensors["pixel_values"]), 3, 2, -1)
    return {**tensors, "pixel_values": twice[:, :, 0].flatten(1)}


def by_rows(images: list, as_squares: bool = False) -> dict[str, torch.Tensor]:
    """Patches row by row, each once in time."""
    patches, grid = [], []
    for image in images:
        rows, columns = (2 * edge for edge in cells(image.size))
        whole = planes(rows * 8, columns * 8)([image])["pixel_values"][0]
        split = whole.view(3, rows, 8, columns, 8).permute(1, 3, 0, 2, 4)
        patches.append(split.reshape(-1, 3, 8, 8))
        grid.append([1, rows, columns])
    pixels = torch.cat(patches)
    flat = pixels if as_squares else pixels.flatten(1)
    return {"pixel_values": flat, "image_grid_thw": torch.tensor(grid)}


def by_rows_twice(images: list) -> dict[str, torch.Tensor]:
    tensors = by_rows(images, as_squares=True)
    twice = tensors["pixel_values"][:, :, None].expand(-1, -1, 2, -1, -1)
    return {**tensors, "pixel_values": twice.flatten(1)}


def with_markers(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which tokens the experts of images get: those around an image too."""
    is_marker = (ids == START) | (ids == END)
    return {**modality(ids), "moe_mm_token_type_ids": ((ids == IMAGE) | is_marker).long()}


WINDOWED = {**BLOCKS, "window_size": 32, "fullatt_block_indexes": [1]}
AUDIO = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "output_dim": 32,
}
MUSE = {
    "vision_config": {
        **NAVIT,
        "pos_emb_height": 2,
        "pos_emb_width": 2,
        "layer_types": ["window_attention", "full_attention"],
    },
    "out_hidden_size": 128,
    "projector_hidden_size": 32,
}
MUSE_TEXT = {
    "head_dim": 8,
    "sliding_window": 512,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "layer_rope_theta": [1e4, 0, 1e4],
}

PATCH_FAMILIES: dict[str, Callable[..., Family]] = {
    "cohere_compass": partial(
        patch_by_patch,
        "CohereCompassForConditionalGeneration",
        "cohere_compass",
        vision_config=DEEPSTACK,
        text_config=text(
            "cohere_compass_text",
            head_dim=8,
            sliding_window=512,
            rope_parameters={"full_attention": ROPE, "sliding_attention": ROPE},
            layer_types=["full_attention", "sliding_attention", "full_attention"],
        ),
    ),
    "cosmos3_edge": partial(
        patch_by_patch,
        "Cosmos3EdgeForConditionalGeneration",
        "cosmos3_edge",
        by_rows,
        vision_config={**NAVIT, "num_patches": 64, "spatial_merge_size": 2},
        text_config=text("cosmos3_edge_text", head_dim=8, rope_parameters=ROPE),
        projector_hidden_size=64,
    ),
    "cosmos3_omni": partial(
        patch_by_patch,
        "Cosmos3OmniForConditionalGeneration",
        "cosmos3_omni",
        vision_config=DEEPSTACK,
        text_config=text("qwen3_vl_text", head_dim=8, rope_parameters=ROPE),
    ),
    "ernie4_5_vl_moe": partial(
        patch_by_patch,
        "Ernie4_5_VLMoeForConditionalGeneration",
        "ernie4_5_vl_moe",
        once,
        with_markers,
        vision_config={
            name: value
            for name, value in BLOCKS.items()
            if name not in ("temporal_patch_size", "out_hidden_size")
        },
        text_config=text(
            "ernie4_5_vl_moe_text",
            rope_parameters=ROPE,
            moe_intermediate_size=[16, 16],
            moe_k=2,
            moe_num_experts=4,
            moe_num_shared_experts=1,
            mlp_layer_types=["dense", "sparse", "sparse"],
        ),
        **GLM_IDS,
    ),
    "exaone4_5": partial(
        patch_by_patch,
        "Exaone4_5_ForConditionalGeneration",
        "exaone4_5",
        more=nothing,
        vision_config={**WINDOWED, "num_key_value_heads": 2},
        text_config=text("exaone4", head_dim=8, sliding_window=512, num_hidden_layers=4),
    ),
    "glm46v": partial(
        patch_by_patch,
        "Glm46VForConditionalGeneration",
        "glm46v",
        vision_config={**BLOCKS, "image_size": 32},
        text_config=text("glm4v_text", rope_parameters=GLM_ROPE),
        **GLM_IDS,
    ),
    "glm4v_moe": partial(
        patch_by_patch,
        "Glm4vMoeForConditionalGeneration",
        "glm4v_moe",
        vision_config={**BLOCKS, "image_size": 32},
        text_config=text(
            "glm4v_moe_text",
            rope_parameters=GLM_ROPE,
            head_dim=8,
            first_k_dense_replace=1,
            **ROUTED,
        ),
        **GLM_IDS,
    ),
    "glm_ocr": partial(
        patch_by_patch,
        "GlmOcrForConditionalGeneration",
        "glm_ocr",
        vision_config={**BLOCKS, "image_size": 32},
        text_config=text("glm_ocr_text", head_dim=8, rope_parameters=GLM_ROPE),
        **GLM_IDS,
    ),
    "glm5_next": partial(
        patch_by_patch,
        "Glm5NextForConditionalGeneration",
        "glm5_next",
        vision_config={**BLOCKS, "image_size": 32, "projection_intermediate_size": 48},
        text_config=text(
            "glm5_next_text",
            num_hidden_layers=4,
            mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
            layer_types=["linear_attention", "indexed_attention"] * 2,
            indexer_types=["full"] * 4,
            linear_head_dim=8,
            linear_num_heads=4,
            hc_mult=2,
            index_kpool=4,
            **ROUTED,
            **{**LATENT, "qk_rope_head_dim": 0},
            **INDEXER,
        ),
        **GLM_IDS,
    ),
    "hyperclovax_vision_v2": partial(
        patch_by_patch,
        "HyperCLOVAXVisionV2ForConditionalGeneration",
        "hyperclovax_vision_v2",
        more=nothing,
        vision_config={"model_type": "qwen2_5_vl_vision", **WINDOWED},
        text_config=text("hyperclovax", head_dim=8),
    ),
    "kimi_k25": partial(
        patch_by_patch,
        "Kimi_K25ForConditionalGeneration",
        "kimi_k25",
        partial(by_rows, as_squares=True),
        nothing,
        vision_config={**NAVIT, "pos_emb_height": 8, "pos_emb_width": 8},
        text_config=text("deepseek_v3", first_k_dense_replace=1, **ROUTED, **LATENT),
        projection_hidden_size=32,
    ),
    "lfm3_vl": partial(
        patch_by_patch,
        "Lfm3VlForConditionalGeneration",
        "lfm3_vl",
        more=nothing,
        vision_config={
            **NAVIT,
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "num_key_value_heads": 2,
        },
        text_config=text(
            "lfm3",
            head_dim=8,
            num_hidden_layers=4,
            sliding_window=512,
            layer_types=["conv", "full_attention", "sliding_attention", "conv"],
        ),
        projector_hidden_size=32,
    ),
    "minimax_m3_vl": partial(
        patch_by_patch,
        "MiniMaxM3SparseForConditionalGeneration",
        "minimax_m3_vl",
        more=nothing,
        vision_config={**VISION, "image_size": 96},
        text_config=text(
            "minimax_m3_vl_text",
            head_dim=8,
            num_experts_per_tok=2,
            num_local_experts=4,
            dense_intermediate_size=32,
            shared_intermediate_size=16,
            rotary_dim=4,
            index_n_heads=2,
            index_head_dim=8,
            index_block_size=16,
            index_topk_blocks=2,
            mlp_layer_types=["dense", "sparse", "sparse"],
            layer_types=["full_attention"] * 3,
            rope_parameters=PLAIN_ROPE,
        ),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        projector_hidden_size=32,
        merged_hidden_size=128,
    ),
    "muse_glimmer": partial(
        patch_by_patch,
        "MuseGlimmerForConditionalGeneration",
        "muse_glimmer",
        by_rows_twice,
        nothing,
        text_config=text("muse_glimmer_text", **MUSE_TEXT),
        **MUSE,
    ),
    "muse_spark": partial(
        patch_by_patch,
        "MuseSparkForConditionalGeneration",
        "muse_spark",
        by_rows_twice,
        nothing,
        text_config=text(
            "muse_spark_text",
            moe_hidden_size=32,
            moe_intermediate_size=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            mlp_layer_types=["dense", "sparse", "sparse"],
            **MUSE_TEXT,
        ),
        audio_config={"hidden_sizes": [8] * 4, "depths": [1] * 4, "out_hidden_size": 32},
        audio_token_id=BREAK,
        **MUSE,
    ),
    "paddleocr_vl": partial(
        patch_by_patch,
        "PaddleOCRVLForConditionalGeneration",
        "paddleocr_vl",
        partial(by_rows, as_squares=True),
        vision_config=VISION,
        text_config=text("paddleocr_vl_text", head_dim=8, rope_parameters=ROPE),
    ),
    "qwen2_5_omni_thinker": partial(
        patch_by_patch,
        "Qwen2_5OmniThinkerForConditionalGeneration",
        "qwen2_5_omni_thinker",
        more=nothing,
        audio_config=AUDIO,
        vision_config=WINDOWED,
        text_config=text("qwen2_5_omni_text", rope_parameters=ROPE),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=BREAK,
    ),
    "qwen3_omni_moe_thinker": partial(
        patch_by_patch,
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        "qwen3_omni_moe_thinker",
        more=nothing,
        audio_config={**AUDIO, "downsample_hidden_size": 8},
        vision_config=DEEPSTACK,
        text_config=text("qwen3_omni_moe_text", head_dim=8, rope_parameters=ROPE, **EXPERTS),
        audio_token_id=BREAK,
    ),
    "qwen3_5_moe": partial(
        patch_by_patch,
        "Qwen3_5MoeForConditionalGeneration",
        "qwen3_5_moe",
        vision_config=GRID,
        text_config=text(
            "qwen3_5_moe_text", shared_expert_intermediate_size=16, **LINEAR, **EXPERTS
        ),
    ),
    "qwen3_vl_moe": partial(
        patch_by_patch,
        "Qwen3VLMoeForConditionalGeneration",
        "qwen3_vl_moe",
        vision_config=DEEPSTACK,
        text_config=text(
            "qwen3_vl_moe_text",
            head_dim=8,
            rope_parameters=ROPE,
            num_local_experts=4,
            **EXPERTS,
        ),
    ),
}
