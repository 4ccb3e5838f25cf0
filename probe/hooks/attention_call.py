"""One attention call, as a module makes it: what `tap` shows and `stats` measures.

Which keys a query may see is read from the call's own mask, in whatever form the kernel wants it:
None (causal or not), bool or additive (batch, 1, query, key), or (batch, key) for flash attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probe.errors import ProbeError

HIDDEN = -1e30  # finite: a weight of exactly 0 times -inf would be NaN


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one attention call, as the model gave them to its kernel.

    `mask` is in force in this call; `own_mask` is the model's own, which an intervention leaves as
    it was.
    """

    name: str  # qualified name of the attention module
    module: nn.Module
    query: Float[Tensor, "batch head query dim"]
    key: Float[Tensor, "batch key_head key dim"]
    value: Float[Tensor, "batch key_head key dim"]
    mask: Tensor | None
    own_mask: Tensor | None
    scaling: float
    causal: bool  # meaningful where there is no mask
    window: int | None  # keys further back than this are not seen
    options: Mapping[str, object]  # what else the module passes to its kernel
    asking: Bool[Tensor, "batch query"] | None = (
        None  # whose output is used, None: all; some calls run in two parts
    )

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
        return replace(self, mask=mask)


@dataclass(frozen=True)
class AttentionWeights:
    """What is left to see of a module that calls no registered function but returns its weights."""

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
    """A bool or additive mask as a bool one: True for what is seen."""
    return mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()


def with_hidden(mask: Tensor, hidden: Bool[Tensor, "..."]) -> Tensor:
    """A bool or additive mask with more pairs hidden."""
    return (
        mask & ~hidden
        if mask.dtype == torch.bool
        else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
    )


def visible_keys(
    mask: Tensor | None, call: AttentionCall, row: int, position: Int[Tensor, "query"], stop: int
) -> Bool[Tensor, "query key"]:
    """Which of the first `stop` keys the queries at `position` may attend to under `mask`."""
    key_count, query_count = call.key_count, call.query_count
    if mask is not None and mask.ndim == 4:
        if mask.shape[1] != 1:
            raise ProbeError(
                "probe", expected="one mask for all heads", got=f"{mask.shape[1]} in {call.name}"
            )
        own = mask[min(row, mask.shape[0] - 1), 0][position - (key_count - query_count), :stop]
        return as_bool(own)
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
    """What is added to the scores: 0 or -1e30, or the model's own additive mask where it has
    one.
    """
    mask = call.mask
    if mask is not None and mask.ndim == 4 and mask.dtype != torch.bool:
        offset = call.key_count - call.query_count
        return (
            mask[min(row, mask.shape[0] - 1), 0][position - offset, :stop].float().clamp(min=HIDDEN)
        )
    hidden = ~visible_keys(mask, call, row, position, stop)
    return hidden.float().mul_(HIDDEN)
