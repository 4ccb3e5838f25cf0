"""One attention call, as a module makes it: what `tap` shows and the statistics measure.

Which keys a query may attend to is read from the call's mask, in whatever form the kernel takes it:
None (causal or not), bool or additive (batch, 1, query, key), or (batch, key) for flash attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.score_rule import FIELDS, PLAIN, ScoreRule, capped, softmax_with_sink

HIDDEN = -1e30  # finite: a weight of exactly 0 times -inf would be NaN


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one attention call, as the model gave them to its kernel.

    `effective_mask` is what the kernel gets; `model_mask` is the model's own, which an intervention
    does not change. `causal` counts where there is no mask. Keys `window` positions back or further
    are hidden. `active_queries` are those whose output is used (None: all): an edited call may run
    in two parts. `removed_queries` are those that the layer runs without (None: none), in one of
    the parts; `silent_queries` those that an intervention gives nothing: they attend to no key.
    `options`: what else the module passes to its kernel. `rule`: what the kernel does
    to scores beside scaling and mask; None where that is not known.
    """

    name: str  # qualified name of the attention module
    module: nn.Module
    query: Float[Tensor, "batch head query dim"]
    key: Float[Tensor, "batch key_head key dim"]
    value: Float[Tensor, "batch key_head key value_dim"]
    effective_mask: Tensor | None
    model_mask: Tensor | None
    scaling: float
    causal: bool
    window: int | None
    options: Mapping[str, object]
    active_queries: Bool[Tensor, "batch query"] | None = None
    removed_queries: Bool[Tensor, "batch query"] | None = None
    silent_queries: Bool[Tensor, "batch query"] | None = None
    rule: ScoreRule | None = PLAIN

    @property
    def row_count(self) -> int:
        return self.query.shape[0]

    @property
    def query_count(self) -> int:
        return self.query.shape[2]

    @property
    def key_count(self) -> int:
        return self.key.shape[2]

    def with_mask(self, mask: Tensor | None) -> "AttentionCall":
        return replace(self, effective_mask=mask)


@dataclass(frozen=True)
class AttentionWeights:
    """The weights of a module that calls no registered function but returns them."""

    name: str
    module: nn.Module
    weights: Float[Tensor, "batch head query key"]

    @property
    def row_count(self) -> int:
        return self.weights.shape[0]

    @property
    def query_count(self) -> int:
        return self.weights.shape[2]

    @property
    def key_count(self) -> int:
        return self.weights.shape[3]


def as_bool(mask: Tensor) -> Tensor:
    """A bool or additive mask as a bool one: True for visible pairs."""
    return mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()


def with_hidden(mask: Tensor, hidden: Bool[Tensor, "..."]) -> Tensor:
    """A bool or additive mask with more pairs hidden."""
    if mask.dtype == torch.bool:
        return mask & ~hidden
    return mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


def visible_keys(
    mask: Tensor | None, call: AttentionCall, row: int, position: Int[Tensor, "query"], stop: int
) -> Bool[Tensor, "query key"]:
    """Which of the first `stop` keys the queries at `position` may attend to under `mask`."""
    key_count = call.key_count
    query_count = call.query_count
    if mask is not None and mask.ndim == 4:
        if mask.shape[1] != 1:
            raise ProbeError(
                "probe", expected="one mask for all heads", got=f"{mask.shape[1]} in {call.name}"
            )
        query = position - (key_count - query_count)
        of_row = mask[min(row, mask.shape[0] - 1), 0]
        return as_bool(of_row[query, :stop])
    key = torch.arange(stop, device=position.device)
    visible = torch.ones(len(position), stop, dtype=torch.bool, device=position.device)
    if call.causal:
        visible &= key <= position[:, None]
    if call.window is not None:
        visible &= key > position[:, None] - call.window
    if mask is not None:  # flash attention: (batch, key), False for padding
        visible &= mask[row, -key_count:][:stop].bool()
    return visible


def bias(call: AttentionCall, row: int, position: Tensor, stop: int) -> Float[Tensor, "query key"]:
    """What is added to the scores: 0 or -1e30, or the additive mask of the call where it has
    one.
    """
    mask = call.effective_mask
    if mask is not None and mask.ndim == 4 and mask.dtype != torch.bool:
        query = position - (call.key_count - call.query_count)
        of_row = mask[min(row, mask.shape[0] - 1), 0]
        return of_row[query, :stop].float().clamp(min=HIDDEN)
    is_hidden = ~visible_keys(mask, call, row, position, stop)
    return is_hidden.float().mul_(HIDDEN)


def require_tensor(called: str, mask: Any, name: str) -> None:
    """Raises ProbeError for a mask that says by blocks and a function what is hidden (flex
    attention). `name`: of the attention module.
    """
    if mask is not None and not isinstance(mask, Tensor):
        raise ProbeError(
            called,
            expected="attention whose mask is a tensor",
            got=f"{type(mask).__name__} in {name}",
            fix="load the model with attn_implementation='eager' or, where it can, 'sdpa'",
        )


def known_rule(called: str, call: AttentionCall) -> ScoreRule:
    """What the kernel of a call does to scores. Raises ProbeError where its output is that of no
    known rule, so that numbers computed from queries and keys would be of another model, and where
    its mask is no tensor.
    """
    require_tensor(called, call.effective_mask, call.name)
    if call.rule is not None:
        return call.rule
    given = [name for name in FIELDS if call.options.get(name) is not None]
    raise ProbeError(
        called,
        expected="a kernel whose output follows from its scores, caps, biases and sinks",
        got=f"{', '.join(given)} in {call.name}, used in another way",
        fix="leave this stack out; drops and answers don't need it",
    )


def attention_weights(
    query: Float[Tensor, "*batch head query dim"],
    key: Float[Tensor, "*batch key_head key dim"],
    scaling: float,
    bias: Float[Tensor, "*head query key"] | float = 0.0,
    cap: float | None = None,
    sink: Float[Tensor, "*batch head query"] | None = None,
) -> Float[Tensor, "*batch head query key"]:
    """softmax(q kᵀ · scaling + bias) in float32, autocast off; with a cap and a sink as in
    `score_rule.py`.
    """
    *batch, heads, query_count, dim = query.shape
    key_heads = key.shape[-3]
    with torch.autocast(query.device.type, enabled=False):
        # The queries of heads that share a key head are rows of one product.
        queries = query.float().reshape(*batch, key_heads, -1, dim)
        scores = capped(queries @ key.float().mT * scaling, cap)
        scores = scores.view(*batch, heads, query_count, -1)
        return softmax_with_sink(scores + bias, sink)


@torch.no_grad()
def attention_rows(
    call: AttentionCall | AttentionWeights,
    row: int,
    position: Int[Tensor, "query"],
    stop: int | None = None,
    called: str = "attention",
) -> Float[Tensor, "head query key"]:
    """The attention that the queries at these positions among the keys give, in one row of the
    batch; float32, under the call's effective mask. `stop`: the keys from there on are left out,
    where no query sees them.

        attention_rows(call, 0, torch.tensor([call.key_count - 1]))      # the last token's
    """
    offset = call.key_count - call.query_count
    if isinstance(call, AttentionWeights):
        query = position.to(call.weights.device) - offset
        return call.weights[row][:, query, :stop].float()
    rule = known_rule(called, call)
    position = position.to(call.query.device)
    query = position - offset
    keys = call.key[row][:, :stop]
    added = bias(call, row, position, keys.shape[1])
    learned = rule.bias_of(row, query, slice(keys.shape[1]))
    if learned is not None:
        added = added + learned
    queries, sink = call.query[row][:, query], rule.sink_of(row, query)
    return attention_weights(queries, keys, call.scaling, added, rule.cap, sink)
