"""The cache is found under the name of any version, and each callee gets it under its own."""

import pytest
import torch
from llava_mini_models import build, ids, pixels
from transformers import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from probe.models.llava_mini.cache_argument import cache_keyword, pop_cache

NAMES = ("past_key_values", "cache")


@pytest.mark.parametrize(
    "callee",
    [create_causal_mask, LlamaDecoderLayer.forward, LlamaModel.forward, BaseModelOutputWithPast],
)
def test_the_keyword_is_one_that_the_callee_has(callee):
    cache = DynamicCache()
    ((name, value),) = cache_keyword(callee, cache).items()
    assert name in NAMES and value is cache


def test_a_callee_without_a_cache_is_refused():
    with pytest.raises(TypeError, match="a function that takes a Cache"):
        cache_keyword(torch.nn.Linear.forward, None)


@pytest.mark.parametrize("name", [*NAMES, "whatever"])
def test_a_cache_is_recognised_by_its_type(name):
    cache = DynamicCache()
    arguments = {"use_cache": True, name: cache}
    assert pop_cache(arguments) is cache and arguments == {"use_cache": True}
    assert pop_cache(arguments) is None


@pytest.mark.parametrize("fusion", ["released", "in_llm"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_model_takes_either_name_and_fills_the_cache(name, fusion):
    model = build(fusion=fusion)
    prompt, image = ids(1, 5, "image", 6), pixels(1, 1)
    cache = DynamicCache()
    first = model(input_ids=prompt, pixel_values=image, **{name: cache})
    filled = [value for value in dict(first).values() if isinstance(value, Cache)]
    assert filled == [cache] and len(cache.layers) == 3
    then = model(input_ids=torch.tensor([[7]]), **{name: cache}).logits
    hide = torch.ones_like(prompt)
    whole = torch.cat([prompt, torch.tensor([[7]])], dim=1)
    expected = model(input_ids=whole, pixel_values=image, fuse_mask=hide, use_cache=False).logits
    assert torch.allclose(then[:, -1], expected[:, -1], atol=1e-5)


@torch.no_grad()
def test_logits_are_kept_where_they_are_asked_for():
    model = build()
    inputs = {"input_ids": ids(1, 5, "image", 6), "pixel_values": pixels(1, 1)}
    whole = model(**inputs).logits
    mask = torch.zeros(whole.shape[:2], dtype=torch.bool)
    mask[0, [1, 4]] = True
    for kept, expected in [
        (0, whole),
        (2, whole[:, -2:]),
        (torch.tensor([1, 4]), whole[:, [1, 4]]),
        (torch.tensor([[4, 1]]), whole[:, [4, 1]]),
        (mask, whole[0, [1, 4]]),
    ]:
        logits = model(**inputs, logits_to_keep=kept).logits
        assert logits.shape == expected.shape
        assert torch.allclose(logits, expected, atol=1e-5)
