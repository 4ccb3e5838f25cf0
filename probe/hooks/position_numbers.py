"""Position ids and rotary embeddings of a layer that runs on some positions of a sequence only.

Kept tokens keep their numbers, or close the gaps: a token's number is then lower by the removed
positions before it. Both come as a layer's keyword arguments.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from probe.errors import ProbeError
from probe.hooks.kept_positions import KeptPositions
from probe.hooks.model_structure import text_decoder


def own_numbers(kept: KeptPositions, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The kept positions with the numbers that the model gave them."""
    numbers: dict[str, Any] = {}
    ids = kwargs.get("position_ids")
    embeddings = kwargs.get("position_embeddings")
    if ids is not None and ids.ndim == 3:  # time, row and column of (batch, position) each
        numbers["position_ids"] = torch.stack([kept.take(axis, 1) for axis in ids])
    elif ids is not None:
        numbers["position_ids"] = kept.take(ids, 1)
    if isinstance(embeddings, Tensor):  # one, of complex rotations
        numbers["position_embeddings"] = kept.take(embeddings, 1)
    elif embeddings is not None:
        numbers["position_embeddings"] = tuple(kept.take(part, 1) for part in embeddings)
    return numbers


def with_numbers(
    model: PreTrainedModel, layer: int, ids: Int[Tensor, "batch row"], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """These numbers, and the layer's rotary embeddings of them where the model passes some."""
    embeddings = kwargs.get("position_embeddings")
    if embeddings is not None:
        decoder = text_decoder(model)
        rotary: Any = decoder.rotary_emb
        by_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        kind = {"layer_type": decoder.config.layer_types[layer]} if by_kind else {}
        embeddings = rotary(embeddings[0], position_ids=ids, **kind)
    return {"position_ids": ids, "position_embeddings": embeddings}


def without_gaps(
    called: str,
    ids: Tensor,
    gaps: Bool[Tensor, "batch position"],
    order: Int[Tensor, "batch position"] | None,
) -> Int[Tensor, "batch position"]:
    """Position ids counted over the tokens outside the gaps, in the `order` in which they run."""
    outside = KeptPositions.without(gaps, order)
    moved = lowered(called, ids, gaps.long().cumsum(1))
    return outside.put(outside.sorted.take(moved, 1), moved, 1)


def lowered(called: str, ids: Tensor, by: Int[Tensor, "batch position"]) -> Tensor:
    """Lower position ids. Raises ProbeError for a model that numbers time, row and column."""
    if ids.ndim != 2:
        raise ProbeError(
            called,
            expected="one position a token, to number them anew",
            got=f"{len(ids)} (time, row and column)",
        )
    return ids - by.to(ids.device)
