"""What a model does to the output of its head before it returns it as logits: nothing, a factor
(Cohere, Granite), a cap c · tanh(x / c) (Gemma), or both (Muse Spark); and which words it never
says, whose logits it sets to the lowest number (Chameleon's image tokens).

Which number a config means in which way is tried out on the model's own logits, never looked up.

    to_logits = logit_map(model, head(norm(last_hidden)), output.logits)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

Map = Callable[[Tensor], Tensor]
WORDS = ("logit", "lm_head", "output_multiplier")  # in the names of such numbers
NEVER = -6e4  # the lowest number of float16 is -65504, that of other dtypes lower
ROUNDING = 1e-4  # of the largest logit: so much is no sign of another map


def logit_map(
    model: PreTrainedModel,
    of_head: Float[Tensor, "row word"],
    logits: Float[Tensor, "row word"],
) -> Map:
    """The map that takes the head's output, in float32, nearest to the model's own logits."""
    expected = logits.float()
    largest = largest_logit(expected)
    is_never_said = ~said(expected).any(0)
    numbers = _numbers(model.config)
    factors = [1.0, *numbers, *(1 / number for number in numbers)]
    maps: list[Map] = [_same, *(partial(_times, factor) for factor in factors[1:])]
    maps += [partial(_capped, cap, factor) for cap in numbers for factor in factors]
    if is_never_said.any():
        lowest = expected[:, is_never_said][0, 0].item()
        maps = [partial(_but_for, is_never_said, lowest, each) for each in maps]

    def error(candidate: Map) -> float:
        return float((candidate(of_head.float()) - expected)[said(expected)].abs().max())

    first = maps[0]
    return first if error(first) <= ROUNDING * largest else min(maps, key=error)


def said(logits: Float[Tensor, "*row word"]) -> Bool[Tensor, "*row word"]:
    """Which words can be said: those whose logits are not set to the lowest number, or to -inf."""
    return ~(logits <= NEVER)  # NaN is a number gone wrong


def largest_logit(logits: Float[Tensor, "*row word"]) -> float:
    """The largest absolute logit of a word that can be said."""
    return float(logits[said(logits)].abs().max())


def _numbers(config: Any) -> list[float]:
    """The numbers about logits in a config and that of its LLM."""
    values = {**vars(config), **vars(config.get_text_config())}
    named = {name: value for name, value in values.items() if any(word in name for word in WORDS)}
    numbers = [value for value in named.values() if isinstance(value, int | float)]
    return [float(number) for number in numbers if number and not isinstance(number, bool)]


def _but_for(is_never_said: Tensor, lowest: float, others: Map, x: Tensor) -> Tensor:
    return others(x).masked_fill(is_never_said, lowest)


def _same(x: Tensor) -> Tensor:
    return x


def _times(factor: float, x: Tensor) -> Tensor:
    return x * factor


def _capped(cap: float, factor: float, x: Tensor) -> Tensor:
    return cap * torch.tanh(x * factor / cap)
