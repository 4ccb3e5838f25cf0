"""Families of newer releases that read images as pictures, or as patches in ways of their own.

model, processor = PICTURE_FAMILIES["janus"]()
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad

from tests.families.models import (
    FAMILIES,
    SIGLIP,
    TEXT,
    VISION,
    Family,
    build,
    merged,
    modality,
    square,
    text,
    tokens,
)
from tests.families.patch_models import INDEXER, LATENT, LINEAR, NAVIT, ROUTED, by_rows
from tests.families.processors import (
    BREAK,
    END,
    IMAGE,
    PAD,
    START,
    VIDEO,
    Size,
    TinyProcessor,
    cells,
    planes,
)

WITHOUT_HEAD = {**SIGLIP, "vision_use_head": False}
SAM = {
    "hidden_size": 32,
    "output_channels": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 48,
    "initializer_range": 0.3,
}
QUANTIZER = {  # of images to words of a codebook
    "latent_channels": 32,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
}


def pixtral(class_name: str, model_type: str, attn: str = "sdpa", **fields: Any) -> Family:
    vision = {"model_type": "pixtral", **VISION, "image_size": 128, "head_dim": 8}
    fields = {"vision_config": vision, "spatial_merge_size": 2, **fields}
    _, processor = FAMILIES["mistral3"]()
    return build(class_name, model_type, attn, **fields), processor


def two_towers(attn: str = "sdpa") -> Family:
    model = build(
        "DeepseekVLHybridForConditionalGeneration",
        "deepseek_vl_hybrid",
        attn,
        vision_config=WITHOUT_HEAD,
        high_res_vision_config={
            "model_type": "sam_vision_model",
            **SAM,
            "num_pos_feats": 16,
            "scale": 1,
        },
        text_config=text("llama"),
        image_token_id=IMAGE,
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:
        return {**planes(32)(images), **planes(64, name="high_res_pixel_values")(images)}

    return model, TinyProcessor(tokens(16), pixels)


def granite_docling(attn: str = "sdpa") -> Family:
    model = build(
        "GraniteDoclingForConditionalGeneration",
        "granite_docling",
        attn,
        vision_config={
            **VISION,
            "out_hidden_size": 32,
            "scale_factor": 2,
            "deepstack_visual_indexes": [0],
            "use_fine_route": False,
        },
        text_config=text("granite_docling_text"),
        image_token_id=IMAGE,
        pad_token_id=PAD,
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:
        views = planes(32)(images)["pixel_values"][None]
        is_view = torch.ones(views.shape[:2], dtype=torch.bool)
        return {"pixel_values": views, "pixel_attention_mask": is_view}

    return model, TinyProcessor(tokens(4, "<start>", "<end>"), pixels)


def flat_rows(images: list, patch: int = 8) -> tuple[torch.Tensor, list[list[int]]]:
    """Patches row by row, filled up to the largest image, and rows and columns of each."""
    flat, shapes = [], []
    for image in images:
        rows, columns = (16 // patch * edge for edge in cells(image.size))
        whole = planes(rows * patch, columns * patch)([image])["pixel_values"][0]
        split = whole.view(3, rows, patch, columns, patch).permute(1, 3, 2, 4, 0)
        flat.append(split.reshape(rows * columns, -1))
        shapes.append([rows, columns])
    most = max(map(len, flat))
    return torch.stack([pad(own, (0, 0, 0, most - len(own))) for own in flat]), shapes


def lfm2_vl(attn: str = "sdpa") -> Family:
    model = build(
        "Lfm2VlForConditionalGeneration",
        "lfm2_vl",
        attn,
        vision_config={"model_type": "siglip2_vision_model", **NAVIT, "num_patches": 16},
        text_config=text("lfm2", num_hidden_layers=4, layer_types=["conv", "full_attention"] * 2),
        image_token_id=IMAGE,
        projector_hidden_size=32,
        downsample_factor=2,
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:
        flat, shapes = flat_rows(images)
        counts = torch.tensor([rows * columns for rows, columns in shapes])
        mask = (torch.arange(flat.shape[1]) < counts[:, None]).long()
        return {
            "pixel_values": flat,
            "spatial_shapes": torch.tensor(shapes),
            "pixel_attention_mask": mask,
        }

    return model, TinyProcessor(merged(), pixels)


def gemma4_unified(attn: str = "sdpa") -> Family:
    model = build(
        "Gemma4UnifiedForConditionalGeneration",
        "gemma4_unified",
        attn,
        vision_config={
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "mm_embed_dim": 32,
            "mm_posemb_size": 64,
            "output_proj_dims": 32,
        },
        text_config=text(
            "gemma4_unified_text",
            head_dim=8,
            global_head_dim=8,
            sliding_window=512,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
            num_kv_shared_layers=0,
        ),
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        boi_token_id=START,
        eoi_token_id=END,
        audio_token_id=BREAK,
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:
        flat, shapes = flat_rows(images, patch=16)
        places = torch.full((*flat.shape[:2], 2), -1)
        for number, (rows, columns) in enumerate(shapes):
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            places[number, : rows * columns] = torch.stack([column, row], -1).flatten(0, 1)
        return {"pixel_values": flat, "image_position_ids": places}

    return model, TinyProcessor(merged(), pixels, modality)


def minicpm(class_name: str, model_type: str, mode: str = "16x", attn: str = "sdpa") -> Family:
    """Patches of all images side by side in one strip; `mode`: patches that become a token."""
    model = build(
        class_name,
        model_type,
        attn,
        vision_config={**VISION, "image_size": 96, "insert_layer_id": 0},
        text_config=text("qwen3_5_text", **LINEAR),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        downsample_mode=mode,
        patch_size=8,
        insert_layer_id=0,
    )
    a_token = int(mode.removesuffix("x"))

    def grid(size: Size) -> tuple[int, ...]:
        return tuple(4 * edge for edge in cells(size, 32, 3))

    def pixels(images: list) -> dict[str, torch.Tensor]:
        strips = []
        for image in images:
            rows, columns = grid(image.size)
            whole = planes(rows * 8, columns * 8)([image])["pixel_values"][0]
            strips.append(whole.view(3, rows, 8, -1).transpose(1, 2).flatten(2))
        sizes = [grid(image.size) for image in images]
        return {"pixel_values": torch.cat(strips, -1)[None], "target_sizes": torch.tensor(sizes)}

    def expand(size: Size) -> str:
        rows, columns = grid(size)
        return "<start>" + "<image>" * (rows * columns // a_token) + "<end>"

    return model, TinyProcessor(expand, pixels)


def nemotron_h_omni(attn: str = "sdpa") -> Family:
    model = build(
        "NemotronH_Omni_Reasoning_V3",
        "nemotron_h_omni",
        attn,
        vision_config={
            "model_type": "radio",
            **VISION,
            "mlp_ratio": 2.0,
            "max_img_size": 96,
            "num_cls_tokens": 1,
            "num_registers": 2,
            "patch_dim": 192,
            "video_patch_dim": 384,
            "video_temporal_patch_size": 2,
            "summary_idxs": [0],
        },
        text_config={
            "model_type": "nemotron_h",
            **{name: value for name, value in TEXT.items() if name != "num_hidden_layers"},
            "head_dim": 8,
            "layers_block_type": [
                "linear_attention",
                "moe",
                "full_attention",
                "mlp",
                "full_attention",
            ],
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "chunk_size": 16,
            "moe_shared_expert_intermediate_size": 16,
            **ROUTED,
        },
        projector_hidden_size=32,
        vision_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        img_context_token_id=IMAGE,
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:
        tensors = by_rows(images)
        grid = tensors["image_grid_thw"]
        return {"pixel_values": tensors["pixel_values"], "image_grid_hw": grid[:, 1:]}

    return model, TinyProcessor(merged(), pixels)


PICTURE_FAMILIES: dict[str, Callable[..., Family]] = {
    "janus": partial(
        square,
        "JanusForConditionalGeneration",
        "janus",
        16,
        before="<start>",
        after="<end>",
        vision_config={
            **{name: VISION[name] for name in VISION if name != "intermediate_size"},
            "mlp_ratio": 2.0,
            "projection_dim": 32,
            "num_image_tokens": 16,
        },
        text_config=text("llama"),
        vq_config={
            **QUANTIZER,
            "embed_dim": 8,
            "num_embeddings": 16,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
            "num_hidden_layers": 1,
        },
    ),
    "qianfan_ocr": partial(
        square,
        "QianfanOCRForConditionalGeneration",
        "qianfan_ocr",
        4,
        before="<start>",
        after="<end>",
        vision_config={
            **VISION,
            "image_size": [32, 32],
            "patch_size": [8, 8],
            "use_mean_pooling": False,
        },
        text_config=text("qwen3", head_dim=8),
        image_seq_length=4,
        downsample_ratio=0.5,
    ),
    "chameleon": partial(
        square,
        "ChameleonForConditionalGeneration",
        "chameleon",
        16,
        side=8,
        vq_config={**QUANTIZER, "embed_dim": 8, "num_embeddings": 10, "resolution": 8},
        vocabulary_map={
            "<image>": IMAGE,
            **{f"IMGIMG{chr(ord('A') + code)}Z": 40 + code for code in range(10)},
        },
        **TEXT,
    ),
    "lighton_ocr": partial(
        pixtral,
        "LightOnOcrForConditionalGeneration",
        "lighton_ocr",
        text_config=text("qwen3", head_dim=8),
        image_token_id=IMAGE,
    ),
    "mistral_large4": partial(
        pixtral,
        "MistralLarge4ForConditionalGeneration",
        "mistral_large4",
        text_config=text(
            "mistral_large4_text", mlp_layer_types=["dense"] * 3, **ROUTED, **LATENT, **INDEXER
        ),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    ),
    "deepseek_vl_hybrid": two_towers,
    "granite_docling": granite_docling,
    "lfm2_vl": lfm2_vl,
    "gemma4_unified": gemma4_unified,
    "minicpmv4_6": partial(minicpm, "MiniCPMV4_6ForConditionalGeneration", "minicpmv4_6"),
    "minicpm_ocr": partial(minicpm, "MiniCPMOcrForConditionalGeneration", "minicpm_ocr", mode="4x"),
    "nemotron_h_omni": nemotron_h_omni,
}
