"""Attention rollout: how much of the rows that predict the answer is made of each patch, if
attention alone mixed the rows and half of each came through the residual stream.

    r ← ½ (r + r Ā)        from the last layer to the first; Ā: the mean over heads

Source: Abnar & Zuidema 2020 (arXiv 2005.00928), section 3.
"""

import torch
from torch import Tensor

from probe.measures.attribution.features import Features
from probe.measures.flow.observed_pass import CallPart, ObservedPass
from probe.measures.flow.streamed_flow import Rows, answer_rows, of_features, received


def rollout(observed: ObservedPass, features: Features) -> dict[str, Tensor]:
    """Fractions: the scores of all tokens of the prompt, words too, sum to 1, less what learned
    sinks take. Rows that a layer does not run on pass it unchanged.
    """
    relevance = answer_rows(observed)
    for parts in reversed(observed.layers):
        relevance = _through_layer(relevance, parts)
    by_token = of_features(relevance, features.tokens, len(features))
    return {"attribution": by_token.mean(0), "token_attribution": by_token}


def _through_layer(relevance: Rows, parts: list[CallPart]) -> Rows:
    is_run = torch.stack([part.active.cpu() for part in parts]).any(0)
    attended = received(relevance, parts, _head_mean)
    return torch.where(is_run, (relevance + attended) / 2, relevance + attended)


def _head_mean(part: CallPart, queries: Tensor, weights: Tensor) -> Tensor:
    return weights.mean(0)
