"""Grad-CAM, with the vision tokens that the LLM gets as the map of activations: they are the last
that still lie in the plane of the image.

    α_c = mean over vision tokens of ∂f/∂x_jc,    score of token j = (Σ_c α_c x_jc)⁺

Tokens of several images or tiles share one α. f is the log-probability of the chosen tokens
together.

Source: Selvaraju et al. 2017 (arXiv 1610.02391), equations 1 and 2; there f is a logit.
"""

import torch
from torch import Tensor

from probe.measures.attribution.features import Features
from probe.measures.flow.observed_pass import ObservedPass
from probe.measures.flow.streamed_flow import of_features


def grad_cam(observed: ObservedPass, features: Features) -> dict[str, Tensor]:
    """0 or more; a region's score is the sum over its vision tokens."""
    gradient, embeddings = observed.embedding_gradient, observed.embeddings
    assert gradient is not None  # `flow` runs the backward pass for this method
    is_vision = torch.from_numpy(observed.answer.inputs.types.vision[0]).to(gradient.device)
    channel_weight = gradient[is_vision].mean(0)
    scores = (embeddings @ channel_weight).clamp(min=0).cpu()
    return {"attribution": of_features(scores[None], features.tokens, len(features))[0]}
