"""Vision tokens whose patches the processor states: a row of numbers of patches for each token, -1
where there are fewer (`image_token_pooling` of Molmo 2).

    pooled(tensors, tokens, patches)     # a PatchGrid, each token in the rectangle of its patches
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from probe.data.patch_grid import PatchGrid
from probe.subject.joined_pixels import holds_numbers


def pooled(tensors: Mapping[str, Any], tokens: int, patches: PatchGrid) -> PatchGrid | None:
    """Where the tokens lie; None where no tensor states the patches of each."""
    stated = [
        value.numpy()
        for name, value in tensors.items()
        if holds_numbers(name) and torch.is_tensor(value) and value.ndim == 2
    ]
    if len(stated) != 1 or len(stated[0]) != tokens or not tokens:
        return None
    numbers = stated[0]
    is_patch = numbers >= 0
    if numbers.max() >= len(patches) or not is_patch.any(axis=1).all():
        return None
    first = numbers[np.arange(tokens), is_patch.argmax(axis=1)]
    last = np.where(is_patch, numbers, -1).max(axis=1)
    # patches of one token may come from views that overlap
    height = np.maximum(1, patches.row[last] - patches.row[first] + 1)
    width = np.maximum(1, patches.col[last] - patches.col[first] + 1)
    edges = np.where(is_patch[..., None], patches.box[numbers], np.nan)
    left_top = np.nanmin(edges[..., :2], axis=1)
    right_bottom = np.nanmax(edges[..., 2:], axis=1)
    return PatchGrid(
        patches.image[first],
        patches.tile[first],
        patches.row[first] // height,
        patches.col[first] // width,
        np.concatenate([left_top, right_bottom], axis=1),
    )
