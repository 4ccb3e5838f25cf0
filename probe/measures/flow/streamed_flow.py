"""Rows times attention maps, from the last layer down to the first: r ← r A, of which some rows
exist at a time.

What reaches the answer is a few rows of a product of all layers' maps. Begun at its last factor it
needs only row vectors: r A = Σ_i r_i a_i, where row a_i is computed again from query and key. What
is kept grows with tokens × layers.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe.hooks.attention_call import attention_rows
from probe.measures.flow.observed_pass import CallPart, ObservedPass

Rows = Float[Tensor, "row token"]
Mixed = Callable[[CallPart, Tensor, Tensor], Tensor]  # part, queries, weights: heads made one
CHUNK = 64  # queries whose weights exist at a time, at most ...
PARTS = 8  # ... and at most one in so many of all


def answer_rows(observed: ObservedPass) -> Rows:
    """One row for each chosen token of the answer: 1 at the position that predicts it."""
    rows = observed.answer.rows
    start = torch.zeros(len(rows), len(observed.embeddings))
    start[torch.arange(len(rows)), rows] = 1
    return start


def received(relevance: Rows, parts: list[CallPart], mixed: Mixed) -> Rows:
    """r A of one layer; A is what `mixed` makes of the heads' weights."""
    total = torch.zeros_like(relevance)
    for part in parts:
        is_needed = (relevance != 0).any(0) & part.active.to(relevance.device)
        if not is_needed.any():
            continue
        at_a_time = max(1, min(CHUNK, part.call.key_count // PARTS))
        for queries in is_needed.nonzero()[:, 0].split(at_a_time):
            weights = weights_of(part, queries)
            averaged = mixed(part, queries, weights).to(relevance.device)
            total[:, : averaged.shape[1]] += relevance[:, queries] @ averaged
    return total


def weights_of(part: CallPart, queries: Int[Tensor, "query"]) -> Float[Tensor, "head query key"]:
    """The attention of some queries; without the keys after the last of them where none sees
    these.
    """
    call = part.call
    is_cut = call.causal and call.effective_mask is None
    stop = int(queries.max()) + 1 if is_cut else call.key_count
    return attention_rows(call, 0, queries, stop, called="flow")


def of_features(
    scores: Float[Tensor, "row token"], tokens: Int[Tensor, " token"], count: int
) -> Float[Tensor, "row feature"]:
    """Sums over the tokens of each feature; those without one (-1) count nowhere."""
    column = tokens % (count + 1)
    summed = scores.new_zeros(len(scores), count + 1).index_add(1, column, scores)
    return summed[:, :count]
