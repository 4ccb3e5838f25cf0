"""Families whose attention caps its scores, adds learned biases to them or has learned sinks.

model, processor = SCORE_FAMILIES["llava_gpt_oss"]()
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.families.models import CLIP, SIGLIP, Family, square, text
from tests.families.processors import IMAGE

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
