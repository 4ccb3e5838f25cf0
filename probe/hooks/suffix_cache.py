"""A cache that holds what follows a shared prefix, and reports the length of both.

The model sizes masks and positions by the length of its cache, so that it continues the prefix; its
attention calls get the keys after the prefix only (`subject/prefix_attention.py` adds the others).

    cache = suffix_cache(layers=32, prefix=580)      # for any number of rows
    model.generate(input_ids=whole_prompts, past_key_values=cache)
"""

from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer


class SuffixLayer(DynamicLayer):
    """Keys and values of the tokens after a prefix of `prefix` tokens."""

    def __init__(self, prefix: int):
        super().__init__()
        self.prefix = prefix

    def get_seq_length(self) -> int:
        return self.prefix + super().get_seq_length()


def suffix_cache(layers: int, prefix: int) -> DynamicCache:
    """An empty cache of `layers` layers, after a prefix of `prefix` tokens."""
    cache: Any = DynamicCache()
    cache.layers = [SuffixLayer(prefix) for _ in range(layers)]
    return cache
