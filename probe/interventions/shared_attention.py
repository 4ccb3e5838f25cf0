"""Attention of many cases at once: one prefix that they share, and what each row has of its own.

Every row attends to the keys of the image prefix and to its own keys behind it. Each part is a softmax of its own, and
they are merged by their normalisers:  out = w · prefix + (1 - w) · own,  w = sigmoid(lse_prefix - lse_own).
So the prefix is one matrix product for all rows of all cases: nothing is copied for a row, and no mask is built.

What a row sees of the vision tokens in a layer is a `View`; view 0 is the model's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from probe.errors import ProbeError
from probe.tap import AttentionCall, Kernel

SCORES = {"cpu": 2**20}  # elements in a block of scores: 4 MB stay in a CPU's cache
SCORES_ELSEWHERE = 2**26

KeyValue = tuple[Tensor, Tensor]  # of one layer, (key_head, key, dim) or (row, key_head, key, dim)
Part = tuple[Tensor, Tensor]  # weighted mean of the values, and the log of the sum of exp(scores)


@dataclass(frozen=True)
class View:
    """What stands in for vision tokens: keys and values of the prefix by attention module, and the tokens behind it.

    `own`: vision tokens behind the prefix are "seen", "hidden", count as "zero", or are replaced by these keys and
    values. `for_vision`: whether vision rows behind the prefix see it so too; else they see view 0.
    """

    prefix: Mapping[str, KeyValue]
    own: Literal["seen", "hidden", "zero"] | Mapping[str, KeyValue] = "seen"
    for_vision: bool = False


class SharedAttention:
    """The attention function of a sweep, for `tap.routed`. `row_view` is set before each layer.

    `vision`: which of the tokens behind the prefix are vision tokens (of further pictures); later tokens are text.
    `longest`: tokens of prompt and answer together.
    """

    def __init__(self, views: list[View], vision: Bool[Tensor, " token"], longest: int):
        self.views, self.vision, self.longest = views, vision, longest
        self.row_view = torch.zeros(1, dtype=torch.long)
        self.own: dict[str, KeyValue] = {}

    def __call__(self, call: AttentionCall, kernel: Kernel) -> tuple[Tensor, None]:
        check_window(call, self.longest)
        key, value = call.key, call.value
        if call.name in self.own:  # decoding
            key, value = (torch.cat(pair, 2) for pair in zip(self.own[call.name], (key, value), strict=True))
        self.own[call.name] = key, value
        vision = pad(self.vision, (0, key.shape[2] - len(self.vision)))
        view = self.row_view.to(key.device)[:, None].repeat(1, call.query_count)  # (row, query)
        if vision.any():
            for_vision = torch.tensor([view.for_vision for view in self.views], device=key.device)
            view = torch.where(vision[-call.query_count :] & ~for_vision[view], 0, view)
        prefix_out, prefix_lse = self._of_prefix(call, view)
        own_out, own_lse = self._of_own(call, key, value, vision, view)
        out = torch.lerp(own_out, prefix_out, torch.sigmoid(prefix_lse - own_lse)[..., None])
        return out.to(call.query.dtype).transpose(1, 2).contiguous(), None

    def _of_prefix(self, call: AttentionCall, view: Int[Tensor, "row query"]) -> Part:
        """All queries of all rows as one list, once for each view among them."""
        rows, heads, tokens, dim = call.query.shape
        queries = call.query.transpose(0, 1).reshape(1, heads, rows * tokens, dim)
        out = torch.zeros_like(queries, dtype=_precise(queries))
        lse = torch.full_like(out[..., 0], -torch.inf)
        for number in view.unique().tolist():
            keys, values = self.views[number].prefix[call.name]
            if keys.shape[1]:
                chosen = (view.flatten() == number).nonzero().squeeze(1)
                part = attend(queries[:, :, chosen], keys[None], values[None], call.scaling)
                out[:, :, chosen], lse[:, :, chosen] = part
        shape = heads, rows, tokens
        return out.view(*shape, dim).transpose(0, 1), lse.view(shape).transpose(0, 1)

    def _of_own(self, call: AttentionCall, key: Tensor, value: Tensor, vision: Tensor, view: Tensor) -> Part:
        """Each row's queries over its own keys, causally."""
        tokens, length = call.query_count, key.shape[2]
        visible = torch.ones(tokens, length, dtype=torch.bool, device=key.device).tril(length - tokens)
        out, lse = attend(call.query, key, value, call.scaling, visible if tokens > 1 else None)
        for number in view.unique().tolist() if vision.any() else ():
            own = self.views[number].own
            if own == "seen":
                continue
            here = view == number
            rows = here.any(1).nonzero().squeeze(1)
            keys, values = _replaced(key[rows], value[rows], vision, own, call.name)
            shown = visible & ~vision if own == "hidden" else visible
            other_out, other_lse = attend(call.query[rows], keys, values, call.scaling, shown)
            here = here[rows][:, None]
            out[rows] = torch.where(here[..., None], other_out, out[rows])
            lse[rows] = torch.where(here, other_lse, lse[rows])
        return out, lse


def check_window(call: AttentionCall, length: int) -> None:
    """Refuses a sliding window that doesn't reach back over so many tokens: shared keys would not be seen by all."""
    if call.window is not None and call.window < length:
        raise ProbeError("drop_sweep", expected=f"a sliding window of at least {length} tokens (prompt and answer)",
                         got=f"{call.window} in {call.name}", fix="ask for fewer new tokens, or load the model with "
                         "a longer sliding_window")  # fmt: skip


def _replaced(key: Tensor, value: Tensor, vision: Tensor, own: str | Mapping, name: str) -> KeyValue:
    """Keys and values of the own part in which vision tokens count as zero or are another picture's."""
    if own == "zero":
        return key, value.masked_fill(vision[:, None], 0)
    if isinstance(own, Mapping):
        key, value = key.clone(), value.clone()
        key[:, :, vision], value[:, :, vision] = own[name]
    return key, value


def attend(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch key_head key dim"],
    value: Float[Tensor, "batch key_head key dim"],
    scaling: float,
    visible: Bool[Tensor, "query key"] | None = None,
) -> Part:
    """Softmax attention and its normaliser: (batch, head, query, dim) and (batch, head, query), in float32 at least.

    In blocks of queries; with fewer key heads than heads, the queries that share one are rows of one product.
    """
    batch, heads, tokens, dim = query.shape
    precise, key_heads = _precise(query), key.shape[1]
    queries = query.reshape(batch, key_heads, -1, dim)
    keys = key.to(precise).mT
    out = torch.empty(queries.shape, dtype=precise, device=query.device)
    lse = out.new_empty(queries.shape[:3])
    hidden = None if visible is None else ~visible.repeat(heads // key_heads, 1)
    size = SCORES.get(query.device.type, SCORES_ELSEWHERE) // (batch * key_heads * key.shape[2])
    for start in range(0, queries.shape[2], max(size, 1)):
        block = slice(start, start + max(size, 1))
        scores = torch.matmul(queries[:, :, block].to(precise) * scaling, keys)
        if hidden is not None:
            scores.masked_fill_(hidden[block], -torch.inf)
        weights = torch.softmax(scores, -1)
        lse[:, :, block] = scores.amax(-1) - weights.amax(-1).log()
        out[:, :, block] = torch.matmul(weights.to(value.dtype), value).to(precise)
    return out.view(query.shape), lse.view(query.shape[:3])


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
