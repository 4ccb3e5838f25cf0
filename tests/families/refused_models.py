"""Models of transformers' image-text-to-text list that can't be observed, tiny and random: their
image is read by an encoder of the prompt, they answer with something else than words, or no token
of the prompt stands for the image.

    refusal("florence2")       # what `probe.load` says: expected, got
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from transformers import PreTrainedModel

import probe
from probe.errors import ProbeError
from tests.families.models import FAMILIES, SIGLIP, TEXT, VISION, VOCABULARY, build, text, tokens
from tests.families.patch_models import LATENT, ROUTED
from tests.families.picture_models import SAM
from tests.families.processors import END, IMAGE, START, TinyProcessor, planes

HEADS_ALIKE = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
FAIRSEQ = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "embed_dim": 32,
    "layers": 2,
    "ffn_dim": 48,
    "attention_heads": 4,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
}
GEMMA = {**TEXT, "head_dim": 8}


def of(class_name: str, model_type: str, **fields: Any) -> Callable[[], PreTrainedModel]:
    return partial(build, class_name, model_type, None, **fields)  # type: ignore[arg-type]


def vision_encoder_decoder() -> PreTrainedModel:
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
    )

    words = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, add_cross_attention=True)
    joined = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), words)
    return VisionEncoderDecoderModel(joined).eval()


REFUSED: dict[str, Callable[[], PreTrainedModel]] = {
    "blip2, T5": of(
        "Blip2ForConditionalGeneration",
        "blip-2",
        vision_config={"model_type": "blip_2_vision_model", **VISION},
        qformer_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "encoder_hidden_size": 32,
            "vocab_size": VOCABULARY,
        },
        text_config={"model_type": "t5", **T5},
        num_query_tokens=6,
        image_token_index=IMAGE,
    ),
    "florence2": of(
        "Florence2ForConditionalGeneration",
        "florence2",
        vision_config={
            "depths": [1, 1],
            "embed_dim": [16, 32],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "window_size": 4,
            "projection_dim": 32,
        },
        text_config={"model_type": "bart", **BART},
        image_token_id=IMAGE,
    ),
    "pix2struct": of(
        "Pix2StructForConditionalGeneration",
        "pix2struct",
        vision_config={
            "hidden_size": 32,
            "patch_embed_hidden_size": 192,
            "d_ff": 48,
            "d_kv": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        text_config={**T5, "hidden_size": 32},
    ),
    "pp_formulanet": of(
        "PPFormulaNetForConditionalGeneration",
        "pp_formulanet",
        vision_config={**SAM, "post_conv_mid_channels": 32, "post_conv_out_channels": 32},
        text_config={**BART, "encoder_hidden_size": 32},
    ),
    "t5gemma2": of(
        "T5Gemma2ForConditionalGeneration",
        "t5gemma2",
        encoder={
            "text_config": GEMMA,
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE,
        },
        decoder=GEMMA,
        image_token_index=IMAGE,
        eoi_token_index=END,
    ),
    "udop": of("UdopForConditionalGeneration", "udop", **T5, image_size=32, patch_size=8),
    "vision-encoder-decoder": vision_encoder_decoder,
    "diffusion_gemma": of(
        "DiffusionGemmaForBlockDiffusion",
        "diffusion_gemma",
        vision_config=FAMILIES["gemma4"]()[0].config.vision_config.to_dict(),
        text_config=text(
            "diffusion_gemma_text",
            head_dim=8,
            sliding_window=512,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
            num_experts=4,
            top_k_experts=2,
            moe_intermediate_size=16,
        ),
        image_token_id=IMAGE,
        boi_token_id=START,
        eoi_token_id=END,
        canvas_length=8,
    ),
    "pi0": of(
        "PI0ForConditionalGeneration",
        "pi0",
        vlm_config={
            "model_type": "paligemma",
            "vision_config": {**SIGLIP, "projection_dim": 32},
            "text_config": {"model_type": "gemma", **GEMMA},
            "image_token_index": IMAGE,
        },
        dit_config={"model_type": "gemma", **GEMMA},
    ),
    "blip": of(
        "BlipForConditionalGeneration",
        "blip",
        vision_config=VISION,
        text_config={**HEADS_ALIKE, "encoder_hidden_size": 32, "sep_token_id": 2},
        projection_dim=32,
        image_text_hidden_size=32,
    ),
    "git": of("GitForCausalLM", "git", vision_config=VISION, **HEADS_ALIKE),
    "kosmos-2": of(
        "Kosmos2ForConditionalGeneration",
        "kosmos-2",
        vision_config=VISION,
        text_config=FAIRSEQ,
        latent_query_num=4,
    ),
    "kosmos-2.5": of(
        "Kosmos2_5ForConditionalGeneration",
        "kosmos-2.5",
        vision_config={
            **{name: VISION[name] for name in VISION if name.startswith(("hidden", "num"))},
            "patch_embed_hidden_size": 192,
            "intermediate_size": 48,
            "head_dim": 8,
            "max_num_patches": 64,
        },
        text_config=FAIRSEQ,
        latent_query_num=4,
    ),
    "evolla": of(
        "EvollaForProteinText2Text",
        "evolla",
        protein_encoder_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        },
        **TEXT,
        resampler_depth=1,
        resampler_dim_head=8,
        resampler_heads=4,
        resampler_num_latents=4,
        aligner_num_add_layers=1,
    ),
    "mistral4": of("Mistral4ForCausalLM", "mistral4", **{**TEXT, **LATENT, **ROUTED}),
}


class WithoutToken(TinyProcessor):
    """A processor that knows no word for an image, as those of most of these models."""

    image_token = None  # type: ignore[assignment]


def refusal(model: PreTrainedModel) -> tuple[str, str]:
    """What `load` expected, and what it got."""
    with pytest.raises(ProbeError) as caught:
        probe.load(model, processor=WithoutToken(tokens(16), planes(32)))
    return caught.value.expected, caught.value.got
