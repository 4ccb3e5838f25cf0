"""How many numbers a cache holds, and the cache of a model that makes none by itself.

cached_numbers(output_cache(model(**inputs, use_cache=True)), layers=32)
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from transformers import DynamicCache

from probe.hooks.layer_arguments import cache_argument, output_cache, takes_cache

CACHED = ("keys", "values", "conv_states", "recurrent_states")  # of a layer of a cache


def with_cache(callee: nn.Module, config: Any, output: Any) -> dict[str, Any]:
    """The argument by which a model fills a cache, as `generate` gives it, where the output of its
    own forward has none (Granite Vision); {} where it has one, or takes none. `config`: its LLM's.
    """
    if output_cache(output) is not None or not takes_cache(callee):
        return {}
    return cache_argument(callee, DynamicCache(config=config))


def cached_numbers(cache: Any, layers: int) -> Float[np.ndarray, " layer"]:
    """The numbers that a cache holds of each layer: keys and values, or the state of one that has
    no attention; of a layer that names them otherwise (Unlimited-OCR) all that it holds. 0 for one
    that keeps nothing of its own.
    """
    numbers = np.zeros(layers)
    for index, layer in enumerate(cache.layers[:layers]):
        usual = _numbers_of([getattr(layer, name, None) for name in CACHED])
        numbers[index] = usual or _numbers_of(vars(layer).values())
    return numbers


def _numbers_of(values: Iterable[Any]) -> int:
    several = [value.values() if isinstance(value, dict) else [value] for value in values]
    tensors = [each for parts in several for each in parts if torch.is_tensor(each)]
    return sum(each.numel() for each in tensors if each.ndim > 1)
