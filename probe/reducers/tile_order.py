"""From the reduced views of one image to its tokens in the prompt.

One view: the tokens as the reducer orders them. An image in tiles (LLaVA-NeXT): the whole image
first, in the reducer's order; then the kept patches of all tiles as they lie in the stitched image,
row by row; the class token of each tile; the merged tokens of each tile. No newline tokens, and
nothing of the padding is cut off.

Source: dvlab-research/VisionZip at 3151f6d, `visionzip/llava_arch.py`, the `unpad` branch.
"""

from math import isqrt

import torch
from jaxtyping import Int
from torch import Tensor

from probe.reducers.reduction import NONE, Reduction


def order(reduction: Reduction, across: int) -> Int[Tensor, " token"]:
    """Which of the tokens of all views (view * tokens of a view + token) stands where. `across`:
    tiles in a row.
    """
    views, width = reduction.source.shape
    number = torch.arange(views * width, device=reduction.source.device)
    whole = number[: reduction.count[0]]
    if views == 1:
        return whole
    tiles = number[width:][_key(reduction, across).flatten().argsort(stable=True)]
    return torch.cat([whole, tiles[: sum(reduction.count[1:])]])


def _key(reduction: Reduction, across: int) -> Int[Tensor, "tile token"]:
    """What the tokens of the tiles are sorted by: the place in the stitched image, or behind all of
    it.
    """
    side = isqrt(reduction.scores.shape[1])
    tile = torch.arange(len(reduction.source) - 1, device=reduction.source.device)[:, None]
    source, patch = reduction.source[1:], reduction.source[1:] - reduction.first_patch
    row = tile // across * side + patch // side
    column = tile % across * side + patch % side
    behind = len(tile) * side**2
    key = torch.where(reduction.is_kept[1:], row * across * side + column, 2 * behind + tile)
    is_class = (source != NONE) & (source < reduction.first_patch)
    return torch.where(is_class, behind + tile, key).masked_fill(~reduction.is_real[1:], 4 * behind)


def patches(reduction: Reduction, chosen: Int[Tensor, " token"]) -> Int[Tensor, " token"]:
    """The patch that each of these tokens stands for, tiles one after the other; -1: class token,
    or none.
    """
    view = torch.arange(len(reduction.source), device=chosen.device)[:, None]
    patch = reduction.source - reduction.first_patch
    patch = torch.where(patch < 0, NONE, patch + view * reduction.scores.shape[1])
    return patch.flatten()[chosen]
