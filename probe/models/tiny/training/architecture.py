"""The tiny LLaVA: CLIP's encoder, a two-layer projector and Llama, as `transformers` builds them.

The last encoder layer's patches go to the projector (`vision_feature_layer=-1`; LLaVA-1.5 uses the
last but one), so that every encoder layer is trained and none is dead weight.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from probe.models.tiny.processor import PATCH
from probe.models.tiny.scenes import SIZE, Scene, draw
from probe.models.tiny.training.recipe import Recipe


def build_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase
) -> LlavaForConditionalGeneration:
    """A model with random weights drawn from the recipe's seed (the global seed is left as it
    was).
    """
    ends: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=16384,
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=True,
        **ends,
    )
    vision = CLIPVisionConfig(
        hidden_size=recipe.vision_hidden,
        intermediate_size=recipe.vision_intermediate,
        num_hidden_layers=recipe.vision_layers,
        num_attention_heads=recipe.vision_heads,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=recipe.vision_hidden,
        initializer_range=recipe.initializer_range,
    )
    extra: dict[str, Any] = {
        "initializer_range": recipe.initializer_range,
        "probe_toy": True,  # figures made with this model say that it is a toy
    }
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.get_vocab()["<image>"],
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        **extra,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlavaForConditionalGeneration(config)
    model.generation_config.update(do_sample=False, **ends)
    return model


def patch_features(
    model: LlavaForConditionalGeneration, pixel_values: Float[Tensor, "image 3 height width"]
) -> Float[Tensor, "image patch hidden"]:
    """The vision tokens: what the projector hands to the language model."""
    output: Any = model.model.get_image_features(pixel_values)
    return torch.stack(list(output.pooler_output))


def pixels(scenes: Sequence[Scene]) -> Float[Tensor, "image 3 height width"]:
    """What the shipped image processor makes of the drawn scenes, without its overhead."""
    drawn = np.stack([np.asarray(draw(scene)) for scene in scenes])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1
