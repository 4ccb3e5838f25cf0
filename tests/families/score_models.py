"""Families whose attention caps its scores, adds learned biases to them or has learned sinks.

model, processor = SCORE_FAMILIES["llava_gpt_oss"]()
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.families.models import CLIP, SIGLIP, Family, build, merged, square, text
from tests.families.processors import (
    BREAK,
    IMAGE,
    START,
    VIDEO,
    TinyProcessor,
    cells,
    planes,
)

WINDOW = 10  # ends within the prompt
CAPPED = text(
    "gemma2",
    head_dim=8,
    sliding_window=WINDOW,
    attn_logit_softcapping=2.0,
    query_pre_attn_scalar=8,
)
SINKS = text(
    "gpt_oss", head_dim=8, sliding_window=WINDOW, num_local_experts=2, num_experts_per_tok=1
)
IN_SOME_LAYERS = text(
    "mimo_v2_flash",
    head_dim=8,
    v_head_dim=4,
    sliding_window=WINDOW,
    layer_types=["full_attention", "sliding_attention", "full_attention"],
    mlp_layer_types=["dense"] * 3,
)
LLAVA = partial(
    square,
    "LlavaForConditionalGeneration",
    "llava",
    16,
    attn="eager",
    vision_config=CLIP,
    image_token_index=IMAGE,
)


def with_sinks(make: Callable[..., Family], **options: Any) -> Family:
    """A family whose learned sinks take a good part."""
    model, processor = make(**options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".sinks"):
                parameter += 3
    return model, processor


SCORE_FAMILIES: dict[str, Callable[..., Family]] = {
    "llava_gemma2": partial(LLAVA, text_config=CAPPED),
    "llava_gpt_oss": partial(with_sinks, LLAVA, text_config=SINKS),
    "llava_mimo": partial(with_sinks, LLAVA, text_config=IN_SOME_LAYERS),
    "paligemma2": partial(
        square,
        "PaliGemmaForConditionalGeneration",
        "paligemma",
        16,
        attn="eager",
        more=lambda ids: {"token_type_ids": torch.zeros_like(ids)},
        vision_config={**SIGLIP, "projection_dim": 32, "vision_use_head": False},
        text_config=CAPPED,
        image_token_index=IMAGE,
        projection_dim=32,
    ),
}

BIASED = {
    "head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": WINDOW,
    "d_rel": 4,
    "rel_extent": 20,
    "layer_types": ["hybrid", "hybrid_sliding", "hybrid"],
    "conv_kernel_size": 3,
    "log_scaling_n_floor": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}


def squares(images: list) -> dict[str, torch.Tensor]:
    """Patches one by one, twice in time, colours last: (patch, time, row, column, colour)."""
    patches = []
    for image in images:
        rows, columns = cells(image.size)
        whole = planes(rows * 8, columns * 8)([image])["pixel_values"][0]
        split = whole.view(3, rows, 8, columns, 8).permute(1, 3, 2, 4, 0)
        patches.append(split.reshape(-1, 1, 8, 8, 3).expand(-1, 2, -1, -1, -1))
    return {"pixel_values": torch.cat(patches)}


def inkling(attn: str = "eager") -> Family:
    """Biases by distance, short convolutions in every layer, an encoder without attention."""
    more = {"n_shared_experts": 1, "mlp_layer_types": ["dense"] * 3}
    model = build(
        "InklingForConditionalGeneration",
        "inkling_mm_model",
        attn,
        text_config=text("inkling_text", **BIASED, **more, logits_mup_width_multiplier=1.0),
        vision_config={"patch_size": 8, "hidden_size": 32, "num_hidden_layers": 6},
        audio_config={"n_mel_bins": 4, "mel_vocab_size": 4},
        image_token_id=IMAGE,
        audio_token_id=VIDEO,
        image_bos_token_id=START,
        audio_bos_token_id=BREAK,
    )
    return model, TinyProcessor(merged(), squares)


BIASED_FAMILIES: dict[str, Callable[..., Family]] = {"inkling": inkling}
