"""DownSample: the image is shrunk so that the encoder makes about as many tokens as a reducer would
leave, and nothing else. The control that every reducer has to beat.

    side     round(sqrt(T)) patches; the pixels of each view are resampled (bicubic, antialiased) to
             side x patch size, and the encoder's position embeddings are interpolated as its own
             `interpolate_pos_encoding` does

A token stands for the patch of the full grid that lies at its middle; all patches of the full grid
count as merged into the token that covers them.

    with DownSample(64)(subject): ...

Source: arXiv 2510.07143 (VTC-Bench).
"""

from dataclasses import dataclass
from math import isqrt, sqrt

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from probe.errors import ProbeError
from probe.reducers.encoder_output import EncoderOutput
from probe.reducers.patch_selection import KeptTokens
from probe.reducers.reduction import NONE, Reduction


@dataclass(frozen=True)
class DownSample(KeptTokens):
    """About `keep` tokens of each view: the nearest square number.

    Raises ProbeError for an encoder whose position embeddings can't be interpolated.
    """

    def side(self, patches: int, views: int = 1) -> int:
        """Patches along a side of the shrunk view.

        >>> DownSample(64).side(576), DownSample(0.25).side(576), DownSample(60).side(576)
        (8, 12, 8)
        """
        return max(1, round(sqrt(self.tokens(patches, views))))

    def shrunk(
        self,
        pixels: Float[Tensor, "view channel height width"],
        patch_size: int,
        views: int | None = None,
    ) -> Float[Tensor, "view channel small small"]:
        """What the encoder is given in place of these pixels. `views`: of an image; None: all of
        these.
        """
        height, width = pixels.shape[-2:]
        rows = height // patch_size
        columns = width // patch_size
        side = self.side(rows * columns, views or len(pixels)) * patch_size
        small = interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True)
        return small.to(pixels.dtype)

    def reduce(self, seen: EncoderOutput) -> Reduction:
        first = seen.first_patch
        full = seen.full_patches
        side = isqrt(seen.patches)
        full_side = isqrt(full)
        if side**2 != seen.patches or full_side**2 != full:
            raise ProbeError(
                "DownSample", expected="an encoder with a square of patches", got=f"{full} patches"
            )
        device = seen.features.device
        views = len(seen.features)
        along = torch.arange(full_side, device=device) * side // full_side
        covering = (along[:, None] * side + along).flatten()  # the token of each full-grid patch
        middle = (2 * torch.arange(side, device=device) + 1) * full_side // (2 * side)
        source = (middle[:, None] * full_side + middle).flatten() + first
        source = source.expand(views, -1)
        merged_into = torch.full((views, first + full), NONE, device=device)
        merged_into[:, first:] = covering
        return Reduction(
            tokens=seen.patch_features,
            source=source,
            kept=source,
            merged_into=merged_into,
            scores=torch.zeros(views, full, device=device),
            layer=seen.output_layer.layer,
            first_patch=first,
            count=(source.shape[1],) * views,
        )
