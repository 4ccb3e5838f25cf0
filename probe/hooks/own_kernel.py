"""The model's own attention kernel: which function it is, and what it does to scores.

Which of the caps, sinks and biases in a call's options it applies is tried out, never assumed:
one kernel takes a cap and another ignores it or raises, and a module may read its sinks itself. So
the kernel runs once on one query and four keys, with a low cap and random biases, and its output is
compared with that of each possible rule.

    kernel = own_function(module, "eager")
    rule = rule_of_kernel(kernel, call)      # None: its output is that of no rule
"""

import itertools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from probe.hooks.attention_call import AttentionCall, attention_weights
from probe.hooks.score_rule import FIELDS, PLAIN, ScoreRule

KEYS = 4
CAP = 2.0  # far below the scores of the trial, whose standard deviation is SPREAD
SPREAD = 3.0
LARGEST_SINK = 50.0  # scores are moved to the sink, so that both take weight; float32 has 24 bits
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
TOLERANCE_HALF = 0.05
# What is known, by kernel: the options that it applies, None where no rule fits
Known = dict[tuple[Any, ...], frozenset[str] | None]
_KNOWN: Known = {}


def implementation_of(module: nn.Module) -> str:
    """The name by which a module looks up its kernel, "" for one that looks up none."""
    if not hasattr(module, "config"):
        return ""
    config: Any = module.config
    return str(getattr(config, "_attn_implementation", None) or "eager")


def own_function(module: nn.Module, implementation: str | None) -> Any:
    """The function the module would have found: `eager` is a default of the file its class (or a
    base) comes from.
    """
    names = [cls.__module__ for cls in type(module).__mro__]
    sources = [vars(sys.modules[name]) for name in names if name in sys.modules]

    def first(name: str) -> Any:
        return next((source[name] for source in sources if name in source), None)

    registry = first("ALL_ATTENTION_FUNCTIONS")
    registry = ALL_ATTENTION_FUNCTIONS if registry is None else registry
    return registry.get_interface(implementation or "eager", first("eager_attention_forward"))


def rule_of_kernel(kernel: Callable[..., Any], call: AttentionCall) -> ScoreRule | None:
    """What the kernel of a call does to scores; None where that is nothing known."""
    given = {name: call.options[name] for name in FIELDS if call.options.get(name) is not None}
    if not given:
        return PLAIN
    implementation = implementation_of(call.module)
    setting = (kernel, type(call.module), implementation, call.query.device.type, *given)
    if setting not in _KNOWN:
        _KNOWN[setting] = _applied(kernel, call, given)
    applied = _KNOWN[setting]
    return None if applied is None else ScoreRule.of(given, applied)


@torch.no_grad()
def _applied(
    kernel: Callable[..., Any], call: AttentionCall, given: Mapping[str, Any]
) -> frozenset[str] | None:
    """The options among those given that the kernel applies."""
    device = call.query.device
    with torch.autocast(device.type, enabled=False):
        trial = _trial(call, given)
        query, key, value = (part.to(device) for part in trial)
        options = {name: each for name, each in call.options.items() if not torch.is_tensor(each)}
        options |= _small(given, query.shape[1]) | {"sliding_window": None}
        try:
            output = kernel(call.module, query, key, value, None, scaling=call.scaling, **options)
        except Exception:  # whatever a kernel raises: the model's own call raises it again
            return None
        made = output[0][0, 0].float()  # (head, dim)
        errors = {}
        for subset in _subsets(given):
            rule = ScoreRule.of(options, subset)
            expected = _expected(query, key, value, call.scaling, rule)
            errors[subset] = float((made - expected).abs().max())
    best = min(errors, key=lambda subset: errors[subset])  # of equal ones the one that has more
    tolerance = TOLERANCE.get(output[0].dtype, TOLERANCE_HALF)
    return best if errors[best] <= tolerance else None


def _subsets(given: Mapping[str, Any]) -> list[frozenset[str]]:
    """The options that can be applied together, the largest sets first. Two names of one field are
    never.
    """
    names = list(given)
    sizes = range(len(names), -1, -1)
    subsets = [subset for size in sizes for subset in itertools.combinations(names, size)]
    distinct = [each for each in subsets if len({FIELDS[name] for name in each}) == len(each)]
    return [frozenset(subset) for subset in distinct]


def _trial(call: AttentionCall, given: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, in float32: scores are spread widely around each head's sink."""
    random = torch.Generator().manual_seed(0)
    heads, key_heads, dim = call.query.shape[1], call.key.shape[1], call.query.shape[-1]
    query = torch.randn(1, heads, 1, dim, generator=random)
    key = torch.randn(1, key_heads, KEYS, dim, generator=random)
    value = torch.randn(1, key_heads, KEYS, call.value.shape[-1], generator=random)
    query *= SPREAD / (call.scaling * math.sqrt(dim))
    sink = given.get("s_aux")
    if isinstance(sink, Tensor) and sink.ndim == 1:
        middle = sink.detach().float().cpu().clamp(-LARGEST_SINK, LARGEST_SINK)
        query[0, :, 0, 0] = middle / call.scaling
        key[..., 0] = 1
    return query, key, value


def _small(given: Mapping[str, Any], heads: int) -> dict[str, Any]:
    """The options in the trial's shape. Sinks that are the same for all queries stay the module's
    own, which may read them itself.
    """
    random = torch.Generator().manual_seed(1)
    small: dict[str, Any] = {}
    for name, value in given.items():
        if name == "softcap":
            small[name] = CAP
        elif isinstance(value, Tensor) and value.ndim == 1:
            small[name] = value.detach()
        else:
            width = KEYS if FIELDS[name] == "position_bias" else 1
            drawn = torch.randn(1, heads, 1, width, generator=random)
            small[name] = drawn.to(value.device)
    return small


def _expected(
    query: Float[Tensor, "1 head 1 dim"],
    key: Float[Tensor, "1 key_head key dim"],
    value: Float[Tensor, "1 key_head key value_dim"],
    scaling: float,
    rule: ScoreRule,
) -> Float[Tensor, "head value_dim"]:
    """The output of a kernel with this rule."""
    only = torch.zeros(1, dtype=torch.long, device=query.device)
    bias, sink = rule.bias_of(0, only, slice(KEYS)), rule.sink_of(0, only)
    added = 0.0 if bias is None else bias
    weights = attention_weights(query[0], key[0], scaling, added, rule.cap, sink)
    of_heads = value[0].repeat_interleave(len(query[0]) // len(key[0]), 0)
    return (weights @ of_heads)[:, 0]
