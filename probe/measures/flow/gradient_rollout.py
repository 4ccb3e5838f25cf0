"""Gradient-weighted rollout: as attention rollout, but a weight counts as much as it speaks for the
answer.

    Ā = mean over heads of (A ⊙ ∂f/∂A)⁺,    r ← r + r Ā        from the last layer to the first

f is the log-probability of the chosen tokens together.

Source: Chefer et al. 2021 (arXiv 2103.15679), equations 5 and 6; there f is a logit.
"""

import torch
from torch import Tensor

from probe.measures.attribution.features import Features
from probe.measures.flow.observed_pass import CallPart, ObservedPass
from probe.measures.flow.streamed_flow import answer_rows, of_features, received


def gradient_rollout(observed: ObservedPass, features: Features) -> dict[str, Tensor]:
    """Relevances of 0 or more without an upper bound: their order and ratios mean something."""
    relevance = answer_rows(observed)
    for parts in reversed(observed.layers):
        relevance = relevance + received(relevance, parts, _for_the_answer)
    by_token = of_features(relevance, features.tokens, len(features))
    return {"attribution": by_token.mean(0), "token_attribution": by_token}


def _for_the_answer(part: CallPart, queries: Tensor, weights: Tensor) -> Tensor:
    """The mean over heads of weights times their gradients, where that is positive."""
    call, gradient = part.call, part.gradient
    assert gradient is not None  # `flow` runs the backward pass for this method
    groups = call.query.shape[1] // call.key.shape[1]
    value = call.value[0].float().repeat_interleave(groups, 0)[:, : weights.shape[2]]
    of_output = gradient[0][queries.to(gradient.device)].float().transpose(0, 1)
    of_weights = torch.bmm(of_output, value.mT)  # (head, query, key): ∂f/∂a_ij = ∂f/∂o_i · v_j
    return (weights * of_weights).clamp(min=0).mean(0)
