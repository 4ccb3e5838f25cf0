"""Tensors of several rows as those of one batch.

Most have one entry an image. A strip has one for all images: their patches side by side, as many as
`target_sizes` says (MiniCPM-V). Numbers of patches count on over all images (Molmo 2).

    joined([row["pixel_values"] for row in rows])    # images one after the other
    in_one_batch(row, "pixel_values", several)       # one row's, changed several times
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor


def joined(parts: Sequence[Tensor], fill: int = 0) -> Tensor:
    """Tensors with one entry an image, one after the other. `fill`: what an image's missing tiles
    and patches are; -1 for places of patches (Gemma 4), where 0 would be a place.
    """
    sizes_of_parts = zip(*(part.shape[1:] for part in parts), strict=True)
    largest = [max(sizes) for sizes in sizes_of_parts]
    images = sum(len(part) for part in parts)
    filled_up = parts[0].new_full((images, *largest), fill)
    start = 0
    for part in parts:
        end = start + len(part)
        filled = [slice(size) for size in part.shape[1:]]
        filled_up[(slice(start, end), *filled)] = part
        start = end
    return filled_up


def counted_on(rows: Sequence[Mapping[str, Any]], name: str) -> list[Tensor]:
    """A tensor of each of these rows; where it holds numbers of patches that vision tokens are
    pooled from, those of later rows count on from the patches of earlier ones. -1 is none.
    """
    parts = [row[name] for row in rows]
    if not holds_numbers(name):
        return parts
    pixels = "pixel_values_videos" if "video" in name else "pixel_values"
    start = 0
    moved = []
    for row, part in zip(rows, parts, strict=True):
        moved.append(torch.where(part < 0, part, part + start))
        start += row[pixels].shape[0] * row[pixels].shape[1]
    return moved


def holds_numbers(name: str) -> bool:
    """Whether this input says which patches each vision token is pooled from."""
    return name.endswith("token_pooling")


def is_strip(row: Mapping[str, Any], name: str) -> bool:
    """Whether these pixels of a row are patches side by side: (1, colour, side, side * patches)."""
    pixels = row[name]
    sizes = row.get("target_sizes")
    if sizes is None or not name.startswith("pixel_values") or pixels.ndim != 4:
        return False
    patches = int(torch.as_tensor(sizes).prod(-1).sum())
    return len(pixels) == 1 and pixels.shape[-1] == pixels.shape[-2] * patches


def in_one_batch(
    row: Mapping[str, Any], name: str, changed: Shaped[Tensor, "case entry ..."]
) -> Shaped[Tensor, "..."]:
    """A tensor of one row in several cases, as that of a batch of these cases."""
    if holds_numbers(name):
        return torch.cat(counted_on([{**row, name: case} for case in changed], name))
    return torch.cat(tuple(changed), -1) if is_strip(row, name) else changed.flatten(0, 1)
