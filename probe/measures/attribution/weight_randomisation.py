"""A subject with the same architecture and shuffled weights: the control for every map that claims
to explain a model.

What the maps of the trained model and of this one have in common comes from the image or the
architecture, not from training.

    control = randomised(subject, seed=0)

Weights are shuffled within each matrix, which keeps their distribution. Source: arXiv 1810.03292
(sanity checks for saliency maps).
"""

import copy
from dataclasses import replace

import torch

from probe.subject.subject import Subject


@torch.no_grad()
def randomised(subject: Subject, seed: int = 0) -> Subject:
    """A copy of the subject (the original stays in memory too) with the entries of every weight
    matrix shuffled; vectors (norms, biases) are unchanged.
    """
    model = copy.deepcopy(subject.model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return replace(
        subject,
        model=model,
        name=f"{subject.name}, weights shuffled",
        revision=f"{subject.revision}-{seed}",
    )
