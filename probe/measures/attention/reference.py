"""The naive reference: whole attention maps, and every number of a record computed from them.

    table = plain_table(weights, visible, types.names, ids, query_ids, vision)    # of one module
    largest_difference(subject, inputs, "llm")       # between the streaming statistic and this one

Needs (head, query, key) in memory; for tests and `probe.verify`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probe.errors import ProbeError
from probe.hooks.attention_call import (
    AttentionCall,
    AttentionWeights,
    known_rule,
    visible_keys,
)
from probe.hooks.attention_tap import Kernel, Output, routed
from probe.hooks.model_structure import stacks
from probe.measures.attention.encoder_layout import ENCODERS, known_part
from probe.measures.attention.stack_queries import stack_statistics
from probe.measures.attention.statistic import AttentionStatistic
from probe.measures.attention.type_sums import NOTHING
from probe.subject.inputs import Inputs
from probe.subject.subject import Subject


def plain_table(
    weights: Float[Tensor, "head query key"],
    visible: Bool[Tensor, "query key"],
    names: tuple[str, ...],
    ids: Int[np.ndarray, "key"],
    query_ids: Int[np.ndarray, "query"],
    vision: Bool[np.ndarray, "key"],
    has_sink: bool = False,
) -> dict[str, np.ndarray]:
    """The table of `probe.measures.attention.statistic`, computed from a whole attention map, one
    pair of types at a time, in float64.

    ids: the type of each key, an index into `names`. query_ids: the type that each query counts as,
    -1: not counted. vision: which keys are vision. has_sink: a learned sink takes what is missing.
    """
    a_ij, can_see = weights.double().cpu().numpy(), visible.cpu().numpy()
    heads, types = len(a_ij), len(names)
    by_head = ("mass", "share", "lift", "head_entropy", "head_entropy_ratio")
    table: dict[str, np.ndarray] = {
        name: np.full((heads, types, types), np.nan) for name in by_head
    }
    table["entropy"] = np.full((types, types), np.nan)
    table["entropy_ratio"] = np.full((types, types), np.nan)
    table["received"] = np.full((types, vision.sum()), np.nan)
    if has_sink:
        table["learned_sink"] = np.full((heads, types), np.nan)
    sees_vision = can_see[:, vision].any(1)
    for a in range(types):
        is_a = query_ids == a
        if has_sink and is_a.any():
            table["learned_sink"][:, a] = 1 - a_ij[:, is_a].sum(-1).mean(-1)
        received = a_ij[:, is_a][:, :, vision].mean(0).sum(0)
        with np.errstate(invalid="ignore"):  # 0 / 0 for a key that no query of A sees
            table["received"][a] = received / can_see[is_a][:, vision].sum(0)
        for b in range(types):
            is_b = ids == b
            on_b = a_ij[:, :, is_b].sum(-1)  # (head, query)
            visible_b = can_see[:, is_b].sum(-1)  # (query)
            queries = is_a & (visible_b > 0)
            if queries.any():
                table["mass"][:, a, b] = on_b[:, is_a].sum(-1) / queries.sum()
                even = visible_b[queries] / can_see[queries].sum(-1)
                table["lift"][:, a, b] = (on_b[:, queries] / even).mean(-1)
            queries = is_a & sees_vision
            if queries.any():
                table["share"][:, a, b] = on_b[:, queries].mean(-1)
            queries = is_a & (visible_b >= 2)
            within_b, seen = a_ij[:, queries][:, :, is_b], visible_b[queries]
            pooled = _mean_entropy(within_b.mean(0), seen)
            table["entropy"][a, b], table["entropy_ratio"][a, b] = pooled
            by_head = np.array([_mean_entropy(head, seen) for head in within_b]).T
            table["head_entropy"][:, a, b], table["head_entropy_ratio"][:, a, b] = by_head
    return table


def _mean_entropy(
    p: Float[np.ndarray, "query key"], visible: Int[np.ndarray, "query"]
) -> tuple[float, float]:
    """Mean in nats over the queries that give these keys any weight, and the mean of its ratio to
    ln(visible keys); NaN where none does.
    """
    total = p.sum(-1, keepdims=True)
    has_weight = total[:, 0] > NOTHING
    if not has_weight.any():
        return np.nan, np.nan
    p = p[has_weight] / total[has_weight]
    log_p = np.log(p, where=p > 0, out=np.zeros_like(p))
    entropy = -(p * log_p).sum(-1)
    ratio = entropy / np.log(visible[has_weight])
    return float(entropy.mean()), float(ratio.mean())


def difference(table: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> float:
    """The largest absolute difference between two tables (relative for lift above 1, which has no
    upper bound); infinite where only one of them is NaN or infinite.
    """
    worst = 0.0
    for name, expected in plain.items():
        known = ~np.isnan(expected)  # NaN: nothing to average, in both
        if (np.isnan(table[name]) == known).any() or not np.isfinite(table[name][known]).all():
            return float("inf")
        scale = np.maximum(1, np.abs(expected)) if name == "lift" else 1
        error = np.abs(table[name] - expected) / scale
        worst = max(worst, float(np.max(error[known], initial=0)))
    return worst


def largest_difference(subject: Subject, inputs: Inputs, stack: str) -> float:
    """Between the streaming statistic of a stack and `plain_table`, over all layers and rows of one
    forward with eager attention. Each whole map is dropped as soon as its table is made; infinite
    where one was never completed.
    """
    statistic, placement = (
        stack_statistics(subject, inputs, [stack])[stack].statistic for _ in range(2)
    )
    incomplete: dict[tuple[str, int], _WholeMap] = {}
    pooled: dict[tuple[str, int], list[dict[str, np.ndarray]]] = {}  # frames that share a row
    worst = 0.0

    def compare(call: AttentionCall, kernel: Kernel) -> Output:
        output = kernel(call)
        statistic(call)
        for part, weights in placement.parts(call, output[1]):
            assert isinstance(part, AttentionCall)
            compare_part(part, weights)
        return output

    def compare_part(call: AttentionCall, eager_weights: Tensor | None) -> None:
        nonlocal worst
        first, rows = placement.place(call)
        offset = call.key_count - call.query_count
        position = torch.arange(offset, call.key_count, device=call.query.device)
        for element, row in enumerate(rows):
            visible = visible_keys(call.model_mask, call, element, position, call.key_count)
            eager_rounds = call.query.dtype != torch.float32  # its weights, to the model's dtype
            if eager_weights is None or eager_rounds:
                weights = _weights(call, element, visible)
            else:
                weights = eager_weights[element]
            key = call.name, row
            if key not in incomplete:
                has_sink = call.rule is not None and call.rule.sink is not None
                incomplete[key] = _WholeMap(statistic, row, call.query.shape[1], has_sink)
            incomplete[key].put(weights, visible, first)
            if first + call.key_count == statistic.width(row):
                tables = pooled.setdefault(key, [])
                tables.append(incomplete.pop(key).table())
                if len(tables) == statistic.order.count(row):
                    found = statistic.table(call.name, [row])
                    worst = max(worst, difference(found, _mean_table(pooled.pop(key))))

    def compare_inline(call: AttentionCall | AttentionWeights) -> None:
        if isinstance(call, AttentionWeights):
            raise ProbeError("probe", expected="an attention call", got=f"weights of {call.name}")
        compare(call, lambda run_already: (run_already.query, None))

    measured = stacks(subject.model)[stack]
    if stack in ENCODERS:
        part = known_part(subject, inputs, measured)
        measured = measured if isinstance(part, str) else part
    attention = measured.attention
    shown = routed(attention, compare, innermost=True, weights=compare_inline)
    with torch.no_grad(), _eager(subject.model), shown:
        subject.model(**inputs, use_cache=False)
    return float("inf") if incomplete or pooled else worst


def _mean_table(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The mean over sequences of equally many queries: the frames of a video."""
    return {name: np.mean([table[name] for table in tables], 0) for name in tables[0]}


class _WholeMap:
    """The whole attention map of one row, filled call by call: pre-fusion sees the image first,
    then the words.
    """

    def __init__(self, statistic: AttentionStatistic, row: int, heads: int, has_sink: bool):
        self.has_sink = has_sink
        self.names, self.ids = statistic.names, statistic.ids[row]
        self.query_ids, self.vision = statistic.query_ids[row], statistic.vision[row]
        shape = len(self.query_ids), len(self.ids)
        self.weights = torch.zeros(heads, *shape)
        self.visible = torch.zeros(*shape, dtype=torch.bool)
        self.computed_query_ids = np.full_like(self.query_ids, -1)

    def put(
        self,
        weights: Float[Tensor, "head query key"],
        visible: Bool[Tensor, "query key"],
        first: int,
    ) -> None:
        """Adds the queries of a call, whose keys begin at `first` and end where the queries do."""
        query_count, key_count = visible.shape
        keys = slice(first, first + key_count)
        end = keys.stop + len(self.query_ids) - len(self.ids)
        queries = slice(end - query_count, end)
        self.weights[:, queries, keys] = weights.cpu()
        self.visible[queries, keys] = visible.cpu()
        self.computed_query_ids[queries] = self.query_ids[queries]

    def table(self) -> dict[str, np.ndarray]:
        return plain_table(
            self.weights,
            self.visible,
            self.names,
            self.ids,
            self.computed_query_ids,
            self.vision,
            self.has_sink,
        )


def _weights(
    call: AttentionCall, element: int, visible: Bool[Tensor, "query key"]
) -> Float[Tensor, "head query key"]:
    """The softmax weights of one batch element in float32; 0 in rows of padding, which see
    nothing.
    """
    groups = call.query.shape[1] // call.key.shape[1]
    key = call.key[element].float().repeat_interleave(groups, 0)
    scores = call.query[element].float() @ key.mT * call.scaling
    rule, every = known_rule("probe", call), torch.arange(call.query_count, device=key.device)
    if rule.cap is not None:
        scores = rule.cap * torch.tanh(scores / rule.cap)
    learned, sink = rule.bias_of(element, every, slice(None)), rule.sink_of(element, every)
    if learned is not None:
        scores = scores + learned
    scores = scores.masked_fill(~visible, float("-inf"))
    if sink is None:
        return scores.softmax(-1).nan_to_num(0)
    return torch.cat([scores, sink[..., None]], -1).softmax(-1)[..., :-1].nan_to_num(0)


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """The model with eager attention in the block, and with its own kernels afterwards."""
    modules: Iterator[nn.Module] = model.modules()
    found = {id(m.config): m.config for m in modules if hasattr(m, "config")}.values()
    configs: Any = [each for each in found if hasattr(each, "_attn_implementation_internal")]
    kernels = [config._attn_implementation_internal for config in configs]
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        for config, kernel in zip(configs, kernels, strict=True):
            config._attn_implementation_internal = kernel
