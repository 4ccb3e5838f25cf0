import inspect
from typing import Any

import models
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    MistralConfig,
    SiglipVisionConfig,
)

from probe.errors import ProbeError
from probe.hooks.model_structure import (
    cls_tokens,
    image_token_id,
    max_positions,
    output_projection,
    stacks,
    vision_positions,
)

TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 20,
}


@pytest.mark.parametrize("factory", models.FACTORIES)
def test_stacks_name_every_attention_module_in_the_order_of_layers(factory):
    model, _ = factory(layers=3)
    found = stacks(model)
    assert list(found) == ["vision", "llm"]
    assert list(found["llm"].attention) == [
        f"model.language_model.layers.{i}.self_attn" for i in range(3)
    ]
    assert list(found["vision"].attention) == [
        f"model.vision_tower.encoder.layers.{i}.self_attn" for i in range(3)
    ]
    modules = dict(model.named_modules())
    for stack in found.values():
        assert len(stack.layers) == 3
        for layer, (name, attention) in zip(stack.layers, stack.attention.items(), strict=True):
            assert attention is modules[name]
            assert attention in set(layer.modules())


def test_a_subclass_with_other_module_names_is_found_too():
    model, _ = models.llava15()
    for layer in model.model.language_model.layers:
        layer.looking = layer.self_attn
        del layer.self_attn
    assert next(iter(stacks(model)["llm"].attention)) == "model.language_model.layers.0.looking"


def test_a_model_of_text_only_has_an_llm_and_no_image_token():
    model = LlamaForCausalLM(LlamaConfig(**TEXT))
    assert list(stacks(model)) == ["llm"]
    with pytest.raises(ProbeError, match="names an image token, got LlamaForCausalLM without one"):
        image_token_id(model)


def test_a_layer_without_attention_and_a_module_without_layers_are_named():
    model, _ = models.llava15()
    del model.model.language_model.layers[1].self_attn
    with pytest.raises(ProbeError, match=r"got none in model\.language_model\.layers\.1"):
        stacks(model)
    with pytest.raises(ProbeError, match="expected a transformers model, got Linear"):
        inspect.unwrap(stacks)(nn.Linear(1, 1))  # without the tests' own type check


@pytest.mark.parametrize("factory", models.FACTORIES)
def test_output_projections_map_all_heads_back(factory):
    model, _ = factory()
    found = stacks(model)
    for attention in found["llm"].attention.values():
        assert output_projection(attention) is attention.o_proj
    for attention in found["vision"].attention.values():
        assert output_projection(attention) is attention.out_proj


def test_an_output_projection_of_another_name_is_the_last_linear_map():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.mix = nn.Linear(4, 12), nn.Linear(4, 4)

    attention = Attention()
    assert output_projection(attention) is attention.mix
    with pytest.raises(
        ProbeError, match="expected a plain linear output projection, got none in Identity"
    ):
        output_projection(nn.Identity())


def test_vision_positions_are_the_image_tokens():
    model, _ = models.llava15()
    image = model.config.image_token_id
    assert vision_positions(model, torch.tensor([[1, image, 2, image]])).tolist() == [
        [False, True, False, True]
    ]


def test_clip_has_a_cls_token_and_siglip_none():
    assert cls_tokens(models.llava15()[0]) == 1
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=5)
    assert cls_tokens(AutoModelForImageTextToText.from_config(config)) == 0
    assert cls_tokens(LlamaForCausalLM(LlamaConfig(**TEXT))) == 0


def test_the_models_positions_are_the_llms():
    assert max_positions(models.llava15(max_positions=77)[0]) == 77
    assert max_positions(LlamaForCausalLM(LlamaConfig(max_position_embeddings=9, **TEXT))) == 9
    assert MistralConfig(max_position_embeddings=9).get_text_config().max_position_embeddings == 9


def test_stacks_are_found_again_only_where_the_module_tree_has_changed():
    model, _ = models.llava15()
    first = stacks(model)
    assert stacks(model)["llm"] is first["llm"]
    layers = model.model.language_model.layers
    layers[0] = type(layers[0])(model.config.text_config, 0)
    second = stacks(model)
    assert second["llm"].layers[0] is layers[0] and second["llm"].layers[1] is layers[1]
    layers[1].looking = layers[1].self_attn
    del layers[1].self_attn
    assert list(stacks(model)["llm"].attention)[1] == "model.language_model.layers.1.looking"
