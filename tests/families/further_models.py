"""Families of newer releases that quantize images to words, or have layers of their own: sinks,
convolutions beside attention, layers that run twice.

model, processor = FURTHER_FAMILIES["emu3"]()
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad

from tests.families.document_models import ends_of_rows
from tests.families.models import (
    TEXT,
    VISION,
    VOCABULARY,
    Family,
    build,
    merged,
    modality,
    square,
    text,
    tokens,
)
from tests.families.patch_models import (
    EXPERTS,
    GRID,
    INDEXER,
    LATENT,
    LINEAR,
    NAVIT,
    PLAIN_ROPE,
    ROUTED,
    once,
    patch_by_patch,
)
from tests.families.picture_models import QUANTIZER, minicpm
from tests.families.processors import (
    BREAK,
    END,
    IMAGE,
    START,
    VIDEO,
    TinyProcessor,
    cells,
    planes,
)

CODES = 10  # words of a codebook; their ids follow
FIRST_CODE = 40
CODEBOOK = {
    **{name: QUANTIZER[name] for name in ("base_channels", "channel_multiplier", "num_res_blocks")},
    "codebook_size": CODES,
    "embed_dim": 4,
    "latent_channels": 4,
    "attn_resolutions": [],
}
HYBRID = {
    "head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": 512,
    "d_rel": 4,
    "rel_extent": 64,
    "num_hidden_layers": 4,
    "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "unpadded_vocab_size": VOCABULARY,
    "n_layers_per_attn_res_block": 2,
}


def sized(images: list) -> dict[str, torch.Tensor]:
    """Images of two pixels a cell in both directions, filled up to the largest."""
    sizes = [[2 * edge for edge in cells(image.size)] for image in images]
    height, width = (max(edges) for edges in zip(*sizes, strict=True))
    filled = []
    for image, (own_height, own_width) in zip(images, sizes, strict=True):
        (pixels,) = planes(own_height, own_width)([image])["pixel_values"]
        filled.append(pad(pixels, (0, width - own_width, 0, height - own_height)))
    return {"pixel_values": torch.stack(filled), "image_sizes": torch.tensor(sizes)}


def emu3(attn: str = "sdpa") -> Family:
    ids = {f"<|visual token {code:06d}|>": FIRST_CODE + code for code in range(CODES)}
    model = build(
        "Emu3ForConditionalGeneration",
        "emu3",
        attn,
        vq_config={**CODEBOOK, "hidden_size": 32},
        text_config=text("emu3_text_model"),
        vocabulary_map={"<image>": IMAGE, "<|extra_200|>": BREAK, **ids},
    )
    with torch.no_grad():
        model.model.vqmodel.quantize.embedding.weight.normal_()  # all codes are used
    return model, TinyProcessor(ends_of_rows(), sized)


def apertus(attn: str | None = None) -> Family:
    model = build(
        "Apertus1p5ForConditionalGeneration",
        "apertus1p5",
        attn,  # type: ignore[arg-type]
        vision_config={**CODEBOOK, "resolution": 32},
        text_config=text("apertus1p5_text", rope_parameters=PLAIN_ROPE),
        audio_config={"model_type": "wavtokenizer_encoder", "codebook_size": 4},
        image_token_id=IMAGE,
        audio_token_id=BREAK,
        image_token_offset=FIRST_CODE,
        audio_token_offset=FIRST_CODE + CODES,
    )
    return model, TinyProcessor(merged(row_end="<break>"), sized)


def molmo2(attn: str = "sdpa") -> Family:
    """Patches pooled by 2 x 2; images see each other in both directions."""
    sizes = {"num_key_value_heads": 4, "head_dim": 8}
    model = build(
        "Molmo2ForConditionalGeneration",
        "molmo2",
        attn,
        vision_config={**VISION, **sizes, "image_size": [32, 32], "num_position_embeddings": 16},
        adapter_config={
            "vision_feature_layer": [-1, -2],
            "hidden_size": 32,
            "num_attention_heads": 4,
            **sizes,
            "intermediate_size": 48,
            "text_hidden_size": 32,
            "initializer_range": 0.3,
        },
        text_config=text("molmo2_text", head_dim=8, additional_vocab_size=8),
        image_patch_id=IMAGE,
        image_start_token_id=START,
        low_res_image_start_token_id=START,
        image_end_token_id=END,
        frame_start_token_id=START,
        frame_end_token_id=END,
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:
        views = planes(32)(images)["pixel_values"]
        split = views.view(-1, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1)
        pooled = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
        return {
            "pixel_values": split.reshape(len(views), 16, -1),
            "image_token_pooling": torch.cat([pooled + 16 * i for i in range(len(views))]),
            "image_grids": torch.tensor([[2, 2, 0, 0]] * len(views)),
            "image_num_crops": torch.ones(len(views), dtype=torch.long),
        }

    return model, TinyProcessor(tokens(4, "<start>", "<end>"), pixels, modality)


def dots_note(attn: str = "sdpa") -> Family:
    whisper = {
        "d_model": 16,
        "encoder_attention_heads": 2,
        "encoder_layers": 1,
        "encoder_ffn_dim": 16,
        "num_mel_bins": 16,
    }
    in_windows = {**LATENT, "num_attention_heads": 4, "head_dim": 16, "kv_lora_rank": 16}
    model = build(
        "Dots3NoteForConditionalGeneration",
        "dots3_note",
        attn,
        vision_config={
            **NAVIT,
            "moe_intermediate_size": 16,
            "adapter_in_dim": 32,
            "adapter_out_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "mlp_layer_types": ["dense", "sparse"],
        },
        audio_config={
            "whisper_config": whisper,
            "whisper_adapter_in_dim": 16,
            "whisper_adapter_out_dim": 32,
            "downsample_hidden_size": 8,
        },
        text_config=text(
            "dots3_note_text",
            layer_types=["indexed_attention", "sliding_attention", "indexed_attention"],
            mlp_layer_types=["dense", "sparse", "sparse"],
            head_dim=16,
            sliding_window=512,
            shared_experts_intermediate_size=16,
            **{f"swa_{name}": value for name, value in in_windows.items()},
            **ROUTED,
            **LATENT,
            **INDEXER,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=BREAK,
    )
    return model, TinyProcessor(merged(), once)


def inkling2(class_name: str, model_type: str, attn: str | None = None, **more: Any) -> Family:
    model = build(
        class_name,
        model_type,
        attn,  # type: ignore[arg-type]
        vision_config={
            **NAVIT,
            "spatial_merge_size": 2,
            "posemb_grid_size": 8,
            "projection_hidden_dim": 32,
            "text_hidden_size": 32,
        },
        text_config=text(f"{model_type}_text", **HYBRID, **more),
        image_token_id=IMAGE,
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:
        """Cells of 2 x 2 patches, colours last."""
        split, grid = [], []
        for image in images:
            rows, columns = cells(image.size)
            (whole,) = planes(rows * 16, columns * 16)([image])["pixel_values"]
            by_cell = whole.view(3, rows, 16, columns, 16).permute(1, 3, 2, 4, 0)
            split.append(by_cell.reshape(-1, 16, 16, 3))
            grid.append([1, rows, columns])
        return {"pixel_values": torch.cat(split), "image_grid_thw": torch.tensor(grid)}

    return model, TinyProcessor(merged(), pixels)


def minicpm_47(attn: str = "sdpa") -> Family:
    model, processor = minicpm("MiniCPMV4_7ForConditionalGeneration", "minicpmv4_7", attn=attn)
    processor.more = modality
    return model, processor


FURTHER_FAMILIES: dict[str, Callable[..., Family]] = {
    "step3p7": partial(
        square,
        "Step3p7ForConditionalGeneration",
        "step3p7",
        4,
        before="<start>",
        after="<end>",
        side=64,
        vision_config={**VISION, "image_size": 64, "mlp_ratio": 1.5},
        text_config={
            **TEXT,
            "head_dim": 8,
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "share_expert_dim": 16,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 512,
            "rope_parameters": {"full_attention": PLAIN_ROPE, "sliding_attention": PLAIN_ROPE},
        },
    ),
    "qwen4_exp": partial(
        patch_by_patch,
        "Qwen4ExpForConditionalGeneration",
        "qwen4_exp",
        vision_config=GRID,
        text_config=text(
            "qwen4_exp_text",
            **{**LINEAR, "layer_types": ["linear_attention", "indexed_attention"] * 2},
            **EXPERTS,
            shared_expert_intermediate_size=16,
            hc_count=2,
            hc_lowrank=8,
            indexer_n_heads=2,
            indexer_kv_heads=1,
            indexer_head_dim=8,
            indexer_budget=64,
            indexer_compress_ratio=4,
        ),
    ),
    "emu3": emu3,
    "apertus1p5": apertus,
    "molmo2": molmo2,
    "dots3_note": dots_note,
    "inkling2": partial(inkling2, "Inkling2ForConditionalGeneration", "inkling2"),
    "inkling2_loop": partial(
        inkling2,
        "Inkling2LoopForConditionalGeneration",
        "inkling2_loop",
        loop_layer_index_start=2,
        loop_layer_index_end=4,
        loop_num_passes=2,
        loop_gate_rank=4,
    ),
    "minicpmv4_7": minicpm_47,
}
