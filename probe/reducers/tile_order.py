"""From the reduced views of one image to its tokens in the prompt.

One view: the tokens in the reducer's order. An image in tiles (LLaVA-NeXT): first the whole image,
in the reducer's order; then the kept patches of all tiles in raster order of the stitched image;
then the class token of each tile; then the merged tokens of each tile. There are no newline tokens,
and the tiles' padding is not cut off.

Source: dvlab-research/VisionZip at 3151f6d, `visionzip/llava_arch.py`, the `unpad` branch.
"""

from math import isqrt

import torch
from jaxtyping import Int
from torch import Tensor

from probe.reducers.reduction import NONE, Reduction


def prompt_order(reduction: Reduction, across: int) -> Int[Tensor, " token"]:
    """The tokens of all views (numbered view * tokens per view + token) in the order of the prompt.
    `across`: tiles per row.
    """
    views, width = reduction.source.shape
    number = torch.arange(views * width, device=reduction.source.device)
    whole_image = number[: reduction.count[0]]
    if views == 1:
        return whole_image
    tiles = number[width:][_sort_key(reduction, across).flatten().argsort(stable=True)]
    return torch.cat([whole_image, tiles[: sum(reduction.count[1:])]])


def _sort_key(reduction: Reduction, across: int) -> Int[Tensor, "tile token"]:
    """What the tokens of the tiles are sorted by: kept patches by their raster position in the
    stitched image; then, tile by tile, class tokens, merged tokens, and padding.
    """
    side = isqrt(reduction.scores.shape[1])
    source = reduction.source[1:]
    tile = torch.arange(len(source), device=source.device)[:, None]
    patch = source - reduction.first_patch
    row = tile // across * side + patch // side
    column = tile % across * side + patch % side
    raster_position = row * across * side + column
    after_patches = len(tile) * side**2  # more than any raster position
    is_class = (source != NONE) & (source < reduction.first_patch)
    of_merged = 2 * after_patches + tile
    key = torch.where(reduction.is_kept[1:], raster_position, of_merged)
    key = torch.where(is_class, after_patches + tile, key)
    return key.masked_fill(~reduction.is_real[1:], 4 * after_patches)


def source_patches(reduction: Reduction, order: Int[Tensor, " token"]) -> Int[Tensor, " token"]:
    """The patch that each of these tokens stands for, counted over all views; -1 for a class token
    or none.
    """
    view = torch.arange(len(reduction.source), device=order.device)[:, None]
    patch = reduction.source - reduction.first_patch
    patch = torch.where(patch < 0, NONE, patch + view * reduction.scores.shape[1])
    return patch.flatten()[order]


def token_of_patches(reduction: Reduction, order: Int[Tensor, " token"]) -> Int[Tensor, " patch"]:
    """The place in the prompt's order of the token that each patch went into, over all views; -1
    where the patch was discarded.
    """
    into = reduction.merged_into[:, reduction.first_patch :]
    views, tokens = reduction.source.shape
    # `merged_into` counts the tokens of a view, `order` those of all views one after the other.
    first_of_view = torch.arange(views, device=order.device)[:, None] * tokens
    token = into.clamp_min(0) + first_of_view
    place = torch.full((views * tokens,), NONE, device=order.device)
    place[order] = torch.arange(len(order), device=order.device)
    return torch.where(into == NONE, NONE, place[token]).flatten()
