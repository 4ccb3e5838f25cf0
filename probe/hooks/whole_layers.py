"""Layers that run on all tokens of a forward, also where only some logits are asked for.

In a model whose last layers read the keys and values of earlier ones (the small Gemma 4), nothing
reads the tokens of a prompt in these layers. So transformers runs them there on the last tokens
alone, those whose logits are asked for by their number, as `generate` does. Asked for by their
positions, the same logits are made by layers that run on all tokens.

    model(**inputs, **last_logits(model, 6))
    with whole_layers(model):
        model.generate(**inputs)
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from probe.hooks.block_threads import add_hook, model_block

OPTION = "logits_to_keep"


def first_without_keys(config: Any) -> int | None:
    """The first layer (from 0) that reads the keys and values of an earlier one in place of its
    own, None where each layer has its own.

    >>> from transformers import Gemma4TextConfig
    >>> first_without_keys(Gemma4TextConfig(num_hidden_layers=35, num_kv_shared_layers=20))
    15
    """
    text = config.get_text_config()
    shared = getattr(text, "num_kv_shared_layers", None) or 0
    return text.num_hidden_layers - shared if shared else None


def last_logits(model: PreTrainedModel, count: int) -> dict[str, Any]:
    """The option of a forward by which it makes the logits of the last `count` tokens alone; none
    where it can't. All layers run on all tokens.
    """
    if OPTION not in inspect.signature(model.forward).parameters:
        return {}
    return {OPTION: count if first_without_keys(model.config) is None else _positions(count)}


@model_block
def whole_layers(model: PreTrainedModel) -> Iterator[None]:
    """In the block every layer runs on all tokens of a forward."""
    with ExitStack() as undo:
        if first_without_keys(model.config) is not None:
            add_hook(undo, model.register_forward_pre_hook, _by_positions, with_kwargs=True)
        yield


def _by_positions(
    model: nn.Module, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    """The arguments of a forward, with the logits asked for by their positions."""
    count = kwargs.get(OPTION)
    if not isinstance(count, int) or count <= 0:
        return None
    return args, {**kwargs, OPTION: _positions(count)}


def _positions(count: int) -> torch.Tensor:
    """Those of the last tokens, counted from the end."""
    return torch.arange(-count, 0)
