"""Attention of many cases at once: one prefix that they share, and what each row has of its own.

Every row attends to the keys of the image prefix and to its own keys behind it. Each part is a
softmax of its own, and they are merged by their normalisers:  out = w · prefix + (1 - w) · own,  w
= sigmoid(lse_prefix - lse_own). So the prefix is one matrix product for all rows of all cases:
nothing is copied for a row, and no mask is built.

What a row sees of the vision tokens in a layer is a `VisionView`; view 0 is the model's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from probe.errors import ProbeError
from probe.hooks.attention_call import AttentionCall
from probe.hooks.attention_tap import Kernel

SCORES = {"cpu": 2**20}  # elements in a block of scores: 4 MB stay in a CPU's cache
SCORES_ELSEWHERE = 2**26

KeyValue = tuple[Tensor, Tensor]  # of one layer, (key_head, key, dim) or (row, key_head, key, dim)
Part = tuple[Tensor, Tensor]  # weighted mean of the values, and the log of the sum of exp(scores)


@dataclass(frozen=True)
class VisionView:
    """What stands in for vision tokens: keys and values of the prefix by attention module, and the
    tokens behind it.

    `own`: vision tokens behind the prefix are "seen", "hidden", count as "zero", or are replaced by
    these keys and values. `for_vision`: whether vision rows behind the prefix see it so too; else
    they see view 0.
    """

    prefix: Mapping[str, KeyValue]
    own: Literal["seen", "hidden", "zero"] | Mapping[str, KeyValue] = "seen"
    for_vision: bool = False


class SharedAttention:
    """The attention function of a sweep, for `tap.routed`. `look` is called before each layer.

    `vision`: which of the tokens behind the prefix are vision tokens (of further images); later
    tokens are text. `longest`: tokens of prompt and answer together.
    """

    def __init__(self, views: list[VisionView], vision: Bool[Tensor, " token"], longest: int):
        self.views, self.vision, self.longest = views, vision, longest
        self.several_images = bool(vision.any())
        self.own: dict[str, KeyValue] = {}
        self.look(torch.zeros(1, dtype=torch.long))

    def look(self, row_view: Int[Tensor, " row"]) -> None:
        """What each row sees in the layer that follows."""
        self.row_view = row_view.to(self.vision.device)
        self.groups = _groups(self.row_view)

    def __call__(self, call: AttentionCall, kernel: Kernel) -> tuple[Tensor, None]:
        check_window(call, self.longest)
        key, value = call.key, call.value
        if call.name in self.own:  # decoding
            key, value = (
                torch.cat(pair, 2) for pair in zip(self.own[call.name], (key, value), strict=True)
            )
        self.own[call.name] = key, value
        tokens, length = call.query_count, key.shape[2]
        visible = torch.ones(tokens, length, dtype=torch.bool, device=key.device).tril(
            length - tokens
        )
        own = attend(call.query, key, value, call.scaling, visible if tokens > 1 else None)
        if self.several_images:
            out = self._with_images_behind(call, key, value, visible, own)
        else:
            out = _merged(self._of_prefix(call, call.query, self.groups), own)
        return out.to(call.query.dtype).transpose(1, 2).contiguous(), None

    def _of_prefix(
        self, call: AttentionCall, query: Tensor, groups: list[tuple[int, Tensor]]
    ) -> Part:
        """Queries (row, head, query, dim) over the prefix that each row sees."""
        if len(groups) == 1:
            return _over_shared(query, *self.views[groups[0][0]].prefix[call.name], call.scaling)
        out = torch.empty_like(query, dtype=_precise(query))
        lse = torch.empty_like(out[..., 0])
        for number, rows in groups:
            out[rows], lse[rows] = _over_shared(
                query[rows], *self.views[number].prefix[call.name], call.scaling
            )
        return out, lse

    def _with_images_behind(
        self, call: AttentionCall, key: Tensor, value: Tensor, visible: Tensor, own: Part
    ) -> Tensor:
        """The whole, where vision tokens are queries and keys behind the prefix too: views are
        those of queries.
        """
        rows, heads, tokens, dim = call.query.shape
        vision = pad(self.vision, (0, key.shape[2] - len(self.vision)))
        for_vision = torch.tensor([view.for_vision for view in self.views], device=key.device)
        view = self.row_view[:, None].repeat(1, tokens)
        view = torch.where(vision[-tokens:] & ~for_vision[view], 0, view)
        for number, there in _groups(self.row_view):
            seen = self.views[number].own
            if seen != "seen":
                keys, values = _replaced(key[there], value[there], vision, seen, call.name)
                shown = visible & ~vision if seen == "hidden" else visible
                part = attend(call.query[there], keys, values, call.scaling, shown)
                is_text = (view[there] == number)[:, None]
                own[0][there] = torch.where(is_text[..., None], part[0], own[0][there])
                own[1][there] = torch.where(is_text, part[1], own[1][there])
        queries = call.query.transpose(1, 2).reshape(rows * tokens, heads, 1, dim)
        out, lse = self._of_prefix(call, queries, _groups(view.flatten()))
        out, lse = (part.view(rows, tokens, heads, -1).transpose(1, 2) for part in (out, lse))
        return _merged((out, lse[..., 0]), own)


def _groups(view: Int[Tensor, " row"]) -> list[tuple[int, Int[Tensor, " member"]]]:
    """The rows of each view."""
    return [(number, (view == number).nonzero().squeeze(1)) for number in view.unique().tolist()]


def _over_shared(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Part:
    """Queries of many rows over keys that all of them share, as one product."""
    rows, heads, tokens, dim = query.shape
    if not key.shape[1]:
        out = torch.zeros_like(query, dtype=_precise(query))
        return out, torch.full_like(out[..., 0], -torch.inf)
    out, lse = attend(
        query.transpose(0, 1).reshape(1, heads, rows * tokens, dim), key[None], value[None], scaling
    )
    return out.view(heads, rows, tokens, dim).transpose(0, 1), lse.view(
        heads, rows, tokens
    ).transpose(0, 1)


def _merged(prefix: Part, own: Part) -> Tensor:
    return torch.lerp(own[0], prefix[0], torch.sigmoid(prefix[1] - own[1])[..., None])


def check_window(call: AttentionCall, length: int) -> None:
    """Refuses a sliding window that doesn't reach back over so many tokens: shared keys would not
    be seen by all.
    """
    if call.window is not None and call.window < length:
        raise ProbeError(
            "drop_sweep",
            expected=f"a sliding window of at least {length} tokens (prompt and answer)",
            got=f"{call.window} in {call.name}",
            fix="ask for fewer new tokens, or load the model with a longer sliding_window",
        )


def _replaced(
    key: Tensor, value: Tensor, vision: Tensor, own: str | Mapping, name: str
) -> KeyValue:
    """Keys and values of the own part in which vision tokens count as zero or are another
    image's.
    """
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
    """Softmax attention and its normaliser: (batch, head, query, dim) and (batch, head, query), in
    float32 at least.

    In blocks of queries; with fewer key heads than heads, the queries that share one are rows of
    one product.
    """
    batch, heads, _, dim = query.shape
    precise, key_heads = _precise(query), key.shape[1]
    queries = query.reshape(batch, key_heads, -1, dim).to(precise) * scaling
    keys = key.to(precise).mT
    hidden = None if visible is None else ~visible.repeat(heads // key_heads, 1)
    size = max(
        1, SCORES.get(query.device.type, SCORES_ELSEWHERE) // (batch * key_heads * key.shape[2])
    )
    parts = []
    for start in range(0, queries.shape[2], size):
        scores = torch.matmul(queries[:, :, start : start + size], keys)
        if hidden is not None:
            scores.masked_fill_(hidden[start : start + size], -torch.inf)
        weights = torch.softmax(scores, -1)
        lse = scores.amax(-1) - weights.amax(-1).log()
        parts.append((torch.matmul(weights.to(value.dtype), value).to(precise), lse))
    out, lse = (
        parts[0] if len(parts) == 1 else (torch.cat(each, 2) for each in zip(*parts, strict=True))
    )
    return out.reshape(query.shape), lse.reshape(query.shape[:3])


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
