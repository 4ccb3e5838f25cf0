"""DPC-kNN, density peak clustering: centres are tokens in dense regions, far from any token in a
denser one.

    distance d_ij = ‖x_i - x_j‖ / √width
    density  ρ_i  = exp(-mean of d_ij² over the k nearest j, itself included)
    gap      δ_i  = the smallest d_ij to a j with ρ_j > ρ_i; the largest of all distances where
                    there is none
    centres       = the k tokens with the largest ρ_i · δ_i; each other token goes to the nearest
                    centre

A little noise on the density separates tokens that are equally dense; without it the first wins.

>>> import torch
>>> x = torch.tensor([[0.0], [0.1], [0.2], [7.0], [7.1], [7.3], [20.0]])
>>> clusters(x, 2, seed=0).of.tolist()
[0, 0, 0, 1, 1, 1, 1]

Source: the method, Du et al. 2016 (doi 10.1016/j.knosys.2016.02.001); this form,
`cluster_and_merge` of Gumpest/SparseVLMs at 26a5f48, `llava/model/language_model/utils.py`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NOISE = 1e-6


@dataclass(frozen=True)
class Clusters:
    """`centre`: the token at the centre of each cluster; `of`: the cluster of each token."""

    centre: Int[Tensor, " cluster"]
    of: Int[Tensor, " token"]

    def mean(self, x: Float[Tensor, "token width"]) -> Float[Tensor, "cluster width"]:
        """The average of each cluster's tokens, in float32."""
        count = torch.bincount(self.of, minlength=len(self.centre))
        total = x.new_zeros(len(self.centre), x.shape[1], dtype=torch.float32)
        return total.index_add_(0, self.of, x.float()) / count[:, None]


def clusters(x: Float[Tensor, "token width"], count: int, seed: int | None = None) -> Clusters:
    """`count` clusters of at least as many tokens, computed in float32. `seed`: of the noise; None
    for no noise.
    """
    points = x.float()[None]
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(points, points, compute_mode=exact)[0] / x.shape[1] ** 0.5
    nearest = distance.topk(count, dim=1, largest=False).values
    density = (-nearest.square().mean(1)).exp()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)  # CPU: the same on every device
        density = density + NOISE * torch.rand(len(x), generator=generator).to(density.device)
    denser = density[None] > density[:, None]
    gap = torch.where(denser, distance, distance.max()).amin(1)
    centre = (gap * density).argsort(descending=True, stable=True)[:count]
    of = distance[centre].argmin(0)
    of[centre] = torch.arange(count, device=x.device)  # also where two centres are the same point
    return Clusters(centre, of)
