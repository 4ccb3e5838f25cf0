"""The arguments of a call of a decoder layer or of a whole model, as a forward pre-hook gets them.

The key/value cache is found by its class and not by its name, which changes between releases of
transformers: `past_key_values` up to 5.23, `cache` from 5.24 on. A cache that is missed would make
each decoding step look like a new prompt, so what looks like a cache of another class is an error.

    cache = find_cache("drop_vision", args, kwargs)          # in a hook: the Cache, or None
    model(**inputs, **cache_argument(model, cache))          # in a call: by the callee's own name
    cache = output_cache(model(**inputs, use_cache=True))
"""

import inspect
from collections.abc import Iterable, Mapping
from functools import cache as cached
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from probe.errors import ProbeError
from probe.hooks.kept_positions import KeptPositions

CACHE_NAMES = ("cache", "past_key_values", "past_key_value", "layer_past", "cache_params")


def find_cache(called: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Cache | None:
    """The cache among the arguments of a call, None where there is none. Raises ProbeError for a
    cache that is not a transformers `Cache`, such as the tuples of older releases.

    >>> from transformers import DynamicCache
    >>> find_cache("probe", (), {"use_cache": True, "any_name": DynamicCache()})
    DynamicCache(layers=[])
    >>> find_cache("drop_vision", (), {"past_key_values": ((), ())})
    Traceback (most recent call last):
    ...
    probe.errors.ProbeError: ...
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, Cache):
            return value
    for name in CACHE_NAMES:
        if kwargs.get(name) is not None:
            kind = type(kwargs[name]).__name__
            raise ProbeError(called, expected="a transformers Cache", got=f"{name} of type {kind}")
    return None


def output_cache(output: Any) -> Cache | None:
    """The cache that a forward returns, None where it returns none."""
    if isinstance(output, ModelOutput):
        output = output.to_tuple()
    values = output if isinstance(output, tuple) else ()
    return next((value for value in values if isinstance(value, Cache)), None)


def cache_argument(callee: nn.Module, cache: Cache | None) -> dict[str, Cache | None]:
    """The cache as a keyword argument, by the name that the callee's signature gives it.

    >>> class Layer(nn.Module):
    ...     def forward(self, hidden_states, past_key_values=None): ...
    >>> cache_argument(Layer(), None)
    {'past_key_values': None}
    """
    name = _cache_name(type(callee))
    if name is None:
        kind = type(callee).__name__
        raise ProbeError(
            "probe", expected="a forward that takes a cache", got=f"{kind} without one"
        )
    return {name: cache}


def generate_argument(model: nn.Module, cache: Cache) -> dict[str, Any]:
    """The cache as an option of `generate`, with those by which it is used whatever the config of
    the checkpoint says (another kind of cache, none at all).
    """
    return {**cache_argument(model, cache), "use_cache": True, "cache_implementation": None}


def takes_cache(callee: nn.Module) -> bool:
    """Whether a forward has a parameter for a cache (that of BLIP-2, for one, has none)."""
    return _cache_name(type(callee)) is not None


@cached
def _cache_name(callee: type[nn.Module]) -> str | None:
    parameters = inspect.signature(callee.forward).parameters
    for name, parameter in parameters.items():
        if name in CACHE_NAMES or "Cache" in str(parameter.annotation):
            return name
    return None


def without_cache(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same keyword arguments for a call that stores no keys and values."""
    kept = {name: value for name, value in kwargs.items() if not isinstance(value, Cache)}
    return kept | {"use_cache": False}


def hidden_states(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states that a layer is called with."""
    return args[0] if args else kwargs[_hidden_name(kwargs)]


def replace_hidden_states(
    args: tuple, kwargs: Mapping[str, Any], hidden: Tensor
) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a layer with other hidden states, passed in the same way."""
    if args:
        return (hidden, *args[1:]), dict(kwargs)
    return args, {**kwargs, _hidden_name(kwargs): hidden}


# What a removal of tokens takes to the kept ones in a way of its own, or what is of other tokens
NOT_OF_EACH_TOKEN = (
    "hidden_state",
    "attention_mask",
    "position",
    "encoder",
    "cross_attention",
    "key_value",
)


def of_kept_tokens(
    kept: KeptPositions, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a layer, at the kept positions where one has an entry for each token beside
    the hidden states: kinds of tokens (ERNIE's experts), inputs of a layer (Gemma 3n).

    >>> kept = KeptPositions.without(torch.tensor([[False, True, False]]))
    >>> _, kwargs = of_kept_tokens(kept, (), {"kinds": torch.tensor([[5, 6, 7]]), "scale": 2})
    >>> kwargs
    {'kinds': tensor([[5, 7]]), 'scale': 2}
    """

    def taken(name: str, value: Any) -> Any:
        is_of_tokens = (
            torch.is_tensor(value)
            and not name.startswith(NOT_OF_EACH_TOKEN)
            and value.ndim >= 2
            and value.shape[1] == kept.length
            and value.shape[0] in (1, len(kept.index))
        )
        return kept.take(value, 1) if is_of_tokens else value

    others = tuple(taken("", value) for value in args[1:])
    return args[:1] + others, {name: taken(name, value) for name, value in kwargs.items()}


def _hidden_name(kwargs: Mapping[str, Any]) -> str:
    """What the layer calls them: `hidden_state` in some encoders up to transformers 5.19."""
    return next((name for name in kwargs if name.startswith("hidden_state")), "hidden_states")


def hidden_first(
    layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """A call of a layer with its hidden states by place and everything else by name, however the
    model passes them (RecurrentGemma passes mask and positions by place).

    >>> class Layer(nn.Module):
    ...     def forward(self, hidden_states, position_ids, attention_mask=None): ...
    >>> hidden_first(Layer(), (1, 2), {"attention_mask": 3})
    ((1,), {'attention_mask': 3, 'position_ids': 2})
    >>> hidden_first(Layer(), (), {"hidden_states": 1, "attention_mask": 3})
    ((1,), {'attention_mask': 3})
    """
    _, first, *others = inspect.signature(type(layer).forward).parameters.values()
    named = dict(kwargs)
    if not args and first.name in named:
        return (named.pop(first.name),), named
    by_place = args[1:]
    have_names = all(each.kind is each.POSITIONAL_OR_KEYWORD for each in others[: len(by_place)])
    if not by_place or not have_names:
        return args, named
    named |= dict(zip((each.name for each in others), by_place, strict=False))
    return args[:1], named


def by_name(callee: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """All arguments of a call of a model by their names."""
    if not args:
        return kwargs
    names = list(inspect.signature(type(callee).forward).parameters)[1:]  # without self
    return {**dict(zip(names, args, strict=False)), **kwargs}
