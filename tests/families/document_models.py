"""Families of newer releases that read documents: tokens at the ends of rows, separators, queries
in the encoder, features added between layers.

model, processor = DOCUMENT_FAMILIES["hunyuan_vl"]()
"""

from collections.abc import Callable
from functools import partial

import torch

from tests.families.models import (
    CLIP,
    ROPE,
    TEXT,
    VISION,
    VOCABULARY,
    Family,
    build,
    modality,
    square,
    text,
    tokens,
)
from tests.families.patch_models import INDEXER, LATENT, NAVIT, PLAIN_ROPE, ROUTED, by_rows
from tests.families.picture_models import SAM
from tests.families.processors import IMAGE, VIDEO, Size, TinyProcessor, cells, planes

TWO_ENCODERS = {**SAM, "downsample_channels": [32, 32]}


def ends_of_rows(before: int = 0, after: int = 0) -> Callable[[Size], str]:
    """A token for each merged cell, one at the end of each row, some before and behind."""

    def expand(size: Size) -> str:
        rows, columns = cells(size)
        return "<start>" + "<image>" * (before + rows * (columns + 1) + after) + "<end>"

    return expand


def granite_vision(attn: str = "sdpa") -> Family:
    """Whole images and one tile each, every 2 x 2 patches to a token by a Q-Former for each window;
    other features are added between layers.
    """
    model = build(
        "Granite4VisionForConditionalGeneration",
        "granite4_vision",
        attn,
        vision_config={**CLIP, "hidden_size": 64},
        text_config=text("granite4_vision_text", num_hidden_layers=4),
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 48,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
            "vocab_size": VOCABULARY,
            "initializer_range": 0.3,
        },
        image_token_index=IMAGE,
        image_grid_pinpoints=[[32, 32]],
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0], [-2, 2]],
        spatial_target_layers=[1, 2, 3, 3],
    )

    def pixels(images: list) -> dict[str, torch.Tensor]:
        views = planes(32)(images)["pixel_values"]
        sizes = [[image.height, image.width] for image in images]
        return {
            "pixel_values": views[:, None].expand(-1, 2, -1, -1, -1),
            "image_sizes": torch.tensor(sizes),
        }

    def expand(size: Size) -> str:
        width, height = size
        rows, columns = 2, 2  # of the tile, without what was padded
        if width > height:
            rows = 2 - 2 * ((2 - int(2 * height / width)) // 2)
        else:
            columns = 2 - 2 * ((2 - int(2 * width / height)) // 2)
        return "<image>" * (4 + rows * (columns + 1))

    return model, TinyProcessor(expand, pixels)


def hunyuan(attn: str = "sdpa") -> Family:
    rope = {**PLAIN_ROPE, "mrope_section": [1, 1, 1, 1]}
    model = build(
        "HunYuanVLForConditionalGeneration",
        "hunyuan_vl",
        attn,
        vision_config={**NAVIT, "spatial_merge_size": 2, "max_image_size": 128},
        text_config=text("hunyuan_vl_text", head_dim=8, rope_parameters=rope),
        image_token_id=IMAGE,
    )
    return model, TinyProcessor(ends_of_rows(1, 1), by_rows, modality)


def hunyuan_4(attn: str | None = None) -> Family:
    model = build(
        "HYV4VLForConditionalGeneration",
        "hy_v4_vl",
        attn,  # type: ignore[arg-type]
        vision_config={
            **NAVIT,
            "spatial_merge_size": 2,
            "max_image_size": 128,
            "out_hidden_size": 32,
        },
        text_config=text(
            "hy_v4_vl_text",
            mlp_layer_types=["dense", "sparse", "sparse"],
            indexer_types=["full", "full", "shared"],
            rope_parameters={**ROPE, "mrope_section": [2, 1, 1]},
            hc_mult=2,
            **ROUTED,
            **LATENT,
            **INDEXER,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return model, TinyProcessor(ends_of_rows(), by_rows, modality)


def deepseek_ocr2(attn: str = "sdpa") -> Family:
    """144 queries behind the patches in the encoder, and a separator."""
    own = ("pad_token_id", "bos_token_id", "eos_token_id", "vocab_size")
    model = build(
        "DeepseekOcr2ForConditionalGeneration",
        "deepseek_ocr2",
        attn,
        vision_config={
            "sam_config": TWO_ENCODERS,
            "encoder_config": {name: value for name, value in TEXT.items() if name not in own},
        },
        text_config=text(
            "deepseek_ocr2_text",
            head_dim=8,
            mlp_layer_types=["dense", "sparse", "sparse"],
            **ROUTED,
        ),
        image_token_id=IMAGE,
    )
    return model, TinyProcessor(tokens(145), planes(64))


def unlimited_ocr(attn: str = "sdpa") -> Family:
    """2 x 2 tokens with a newline a row, and a separator."""
    model = build(
        "UnlimitedOcrForConditionalGeneration",
        "unlimited_ocr",
        attn,
        vision_config={"sam_config": TWO_ENCODERS, "encoder_config": VISION},
        text_config=text(
            "unlimited_ocr_text",
            sliding_window=512,
            mlp_layer_types=["dense", "sparse", "sparse"],
            **{**ROUTED, "num_key_value_heads": 4},
        ),
        image_token_id=IMAGE,
    )
    return model, TinyProcessor(tokens(7), planes(64))


DOCUMENT_FAMILIES: dict[str, Callable[..., Family]] = {
    "got_ocr2": partial(
        square,
        "GotOcr2ForConditionalGeneration",
        "got_ocr2",
        4,
        before="<start>",
        after="<end>",
        side=64,
        attn=None,  # type: ignore[arg-type]
        vision_config=SAM,
        text_config=text("qwen2"),
        image_token_index=IMAGE,
        image_seq_length=4,
    ),
    "granite4_vision": granite_vision,
    "hunyuan_vl": hunyuan,
    "hy_v4_vl": hunyuan_4,
    "deepseek_ocr2": deepseek_ocr2,
    "unlimited_ocr": unlimited_ocr,
}
