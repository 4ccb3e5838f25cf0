"""Where in the picture a vision token lies: from the picture to the pixels, to patches, to tokens.

A processor shows the encoder one view of the picture, or several (LLaVA-NeXT: the whole picture and its
tiles). A view is a rectangle of the original picture, in fractions of it, which may reach over the edge where
it was padded:

    crop      the middle square of the picture, as Hugging Face's processor takes it
    pad       a square around the picture, as LLaVA-1.5 was trained (Source: haotian-liu/LLaVA, expand2square)
    squash    the whole picture, stretched
    anyres    the whole picture, stretched, then tiles of the best resolution (Source: LLaVA-NeXT)

A processor with a `resolution_ratio` N shows N x N sub-images row by row, each fitted like a picture of its own, and
the whole picture last (Source: LLaVA-Mini, `split_image`).

Patches divide a view evenly. Which patches reach the LLM, and in which order, only the model knows: coordinates are
pushed through its own packing in place of features. A model that compresses a picture to C x C tokens has cells in
place of patches: they divide what is compressed evenly, though each token has looked at all of it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from transformers import PreTrainedModel
from transformers.image_processing_utils import select_best_resolution

from probe.data.token_types import PatchGrid
from probe.hooks.model_structure import cls_tokens

Size = tuple[int, int]  # width, height in pixels, as PIL has it
WHOLE = np.array([0.0, 0.0, 1.0, 1.0])  # left, top, right, bottom


def aspect_of(processor: Any) -> str:
    """What a processor (or its image processor alone) does with a picture that is not square: "crop", "pad", "squash"
    or "anyres"."""
    image_processor = getattr(processor, "image_processor", processor)
    if getattr(image_processor, "image_grid_pinpoints", None):
        return "anyres"
    if getattr(processor, "aspect", None) == "pad":
        return "pad"
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        return "pad"
    if _edges(image_processor)[0] is None:
        return "squash"
    return "crop" if image_processor.do_center_crop else "squash"


def padded_to_square(image: Image.Image, image_processor: Any) -> Image.Image:
    """The picture in the middle of a square of the processor's mean colour, as LLaVA-1.5 was trained."""
    side = max(image.size)
    colour = tuple(int(value * 255) for value in image_processor.image_mean)
    square = Image.new("RGB", (side, side), colour)  # type: ignore[arg-type]
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def views(image_processor: Any, size: Size, aspect: str) -> Float[np.ndarray, "tile edge=4"]:
    """The rectangles of the picture that an image processor makes of it."""
    if aspect == "anyres":
        return np.stack([WHOLE, *_tiles(image_processor, size)])
    if aspect != "pad":
        return _processed(image_processor, size)[None]
    return _within(_square(size), _processed(image_processor, (max(size), max(size))))[None]


def _square(size: Size) -> np.ndarray:
    """The square around a picture that is padded."""
    width, height = size
    side = max(size)
    left, top = (side - width) // 2, (side - height) // 2
    return np.array([-left / width, -top / height, (side - left) / width, (side - top) / height])


def _sub_images(processor: Any, size: Size, aspect: str, ratio: int) -> tuple[np.ndarray, np.ndarray]:
    """The views of ratio x ratio sub-images, what they do not divide cut off, and of the whole picture. And what each
    can show: a sub-image that is padded shows nothing of its neighbours."""
    if aspect == "pad" and aspect_of(processor) != "pad":  # padded by ourselves, before it is split
        found = _sub_images(processor, (max(size), max(size)), aspect_of(processor), ratio)
        return _within(_square(size), found[0]), _within(_square(size), found[1])
    width, height = size[0] // ratio, size[1] // ratio
    corners = [(col * width, row * height) for row in range(ratio) for col in range(ratio)]
    tiles = np.array([[x, y, x + width, y + height] for x, y in corners]) / [*size, *size]
    fitted = _within(tiles, views(processor.image_processor, (width, height), aspect)[0])
    everything = np.array([[-np.inf, -np.inf, np.inf, np.inf]])
    shown = np.concatenate([fitted, views(processor.image_processor, size, aspect)])
    return shown, np.concatenate([tiles, everything])


def pixels_on_the_way(image_processor: Any, size: Size, aspect: str) -> int:
    """Pixels of the largest picture that is made on the way from a picture to its views."""
    shortest, _ = _edges(image_processor)
    if aspect == "pad":
        return max(size) ** 2
    return shortest**2 * max(size) // min(size) if aspect == "crop" and shortest else 0


def _processed(image_processor: Any, size: Size) -> np.ndarray:
    """The part of a picture that is left after resizing and cropping."""
    width, height = size
    shortest, _ = _edges(image_processor)
    if image_processor.do_resize and shortest is not None:
        width, height = (shortest if edge == min(size) else int(shortest * edge / min(size)) for edge in size)
    elif image_processor.do_resize:
        _, (height, width) = _edges(image_processor)
    if not image_processor.do_center_crop:
        return WHOLE
    crop = image_processor.crop_size
    left, top = (width - crop["width"]) // 2, (height - crop["height"]) // 2
    return np.array([left / width, top / height, (left + crop["width"]) / width, (top + crop["height"]) / height])


def _edges(image_processor: Any) -> tuple[int | None, tuple[int | None, int | None]]:
    size = dict(image_processor.size)
    return size.get("shortest_edge"), (size.get("height"), size.get("width"))


def _tiles(image_processor: Any, size: Size) -> list[np.ndarray]:
    """LLaVA-NeXT: resized to fit the best resolution, padded evenly, cut into tiles row by row."""
    width, height = size
    rows, columns = select_best_resolution((height, width), image_processor.image_grid_pinpoints)
    if columns / width < rows / height:
        inner = (columns, min(math.ceil(height * (columns / width)), rows))
    else:
        inner = (min(math.ceil(width * (rows / height)), columns), rows)
    left, top = (columns - inner[0]) // 2, (rows - inner[1]) // 2
    tile = int(dict(image_processor.crop_size or {}).get("height") or _edges(image_processor)[0] or rows)
    corners = [(x - left, y - top) for y in range(0, rows, tile) for x in range(0, columns, tile)]
    return [np.array([x, y, x + tile, y + tile]) / np.array([*inner, *inner]) for x, y in corners]


def _within(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """A rectangle given in fractions of another one, in the other one's own units."""
    corner, extent = outer[..., :2], outer[..., 2:] - outer[..., :2]
    return np.concatenate([corner + inner[..., :2] * extent, corner + inner[..., 2:] * extent], axis=-1)


def encoder_grid(model: PreTrainedModel, processor: Any, sizes: Sequence[Size], aspect: str) -> PatchGrid:
    """The encoder's patches, CLS left out: every view of every picture in the order of `pixel_values`.

    `sizes` are the width and height of the original pictures.
    """
    return PatchGrid.join([_patches(model, processor, size, aspect, picture) for picture, size in enumerate(sizes)])


def _patches(model: PreTrainedModel, processor: Any, size: Size, aspect: str, picture: int) -> PatchGrid:
    ratio = getattr(processor, "resolution_ratio", 1)
    limits = None
    if ratio > 1:
        rects, limits = _sub_images(processor, size, aspect, ratio)
        tiles = np.array([*range(1, len(rects)), 0])  # the whole picture comes last, and is 0 everywhere
    else:
        rects = views(processor.image_processor, size, aspect)
        tiles = np.arange(len(rects))
    side = patches_per_side(model)
    view, row, col = (axis.ravel() for axis in np.indices((len(rects), side, side)))
    inner = np.stack([col, row, col + 1, row + 1], axis=-1) / side
    box = _within(rects[view], inner)
    if limits is not None:
        box = np.clip(box, np.tile(limits[view, :2], 2), np.tile(limits[view, 2:], 2))
    return PatchGrid(np.full_like(view, picture), tiles[view], row, col, box)


def patches_per_side(model: PreTrainedModel) -> int:
    """Patches along one side of a view."""
    vision = model.config.vision_config
    return vision.image_size // vision.patch_size


def vision_grid(model: PreTrainedModel, processor: Any, sizes: Sequence[Size], aspect: str) -> PatchGrid:
    """The vision tokens that the LLM gets, in the order of the sequence. `sizes`: width, height of the
    originals."""
    grids = []
    compressed = getattr(model.config, "tokens_per_frame", None)
    for picture, size in enumerate(sizes):
        patches = _patches(model, processor, size, aspect, picture)
        if compressed is not None:
            grids.append(_compressed(patches, compressed(views=len(np.unique(patches.tile)))))
        else:
            grids.append(_taken(patches, _packed(model, patches, size)))
    return PatchGrid.join(grids)


def joined(patches: PatchGrid) -> PatchGrid:
    """The sub-images of every picture as one grid row by row, and the patches of the whole picture behind it."""
    ratio = max(1, math.isqrt(int(patches.tile.max(initial=0))))
    row, col = np.divmod(np.maximum(patches.tile - 1, 0), ratio)  # of the sub-image
    order = (patches.col, col, patches.row, row, (patches.tile == 0) & (ratio > 1), patches.picture)
    return _taken(patches, np.lexsort(order))


def sub_images(patches: PatchGrid) -> PatchGrid:
    """What of `joined` patches is compressed: all but the whole picture, where that is not all there is."""
    return _taken(patches, np.flatnonzero((patches.tile > 0) | (patches.tile.max(initial=0) == 0)))


def _compressed(patches: PatchGrid, tokens: int) -> PatchGrid:
    """The cells of one picture's C x C tokens, or all its patches where they are not compressed."""
    if tokens == len(patches):
        return joined(patches)
    side, inner = math.isqrt(tokens), sub_images(patches)
    edges = np.concatenate([inner.box[:, :2].min(axis=0), inner.box[:, 2:].max(axis=0)])
    row, col = (axis.ravel() for axis in np.indices((side, side)))
    box = _within(edges, np.stack([col, row, col + 1, row + 1], axis=-1) / max(side, 1))
    return PatchGrid(np.full_like(row, patches.picture[0]), np.zeros_like(row), row, col, box)


def reduced_grid(patches: PatchGrid, left: Sequence[Int[np.ndarray, "_"]]) -> PatchGrid:
    """The tokens that a reducer leaves. `left`: the patch that each stands for, counted in its picture; -1: none."""
    numbers = [np.flatnonzero(patches.picture == picture) for picture in range(len(left))]
    grids = [_taken(_taken(patches, own), index) for own, index in zip(numbers, left, strict=True)]
    return PatchGrid.join(grids)


def _taken(patches: PatchGrid, index: np.ndarray) -> PatchGrid:
    """The patches at `index`; -1 is a token that is no patch."""
    tile, row, col = (np.where(index < 0, -1, axis[index]) for axis in (patches.tile, patches.row, patches.col))
    box = np.where(index[:, None] < 0, np.nan, patches.box[index])
    return PatchGrid(patches.picture[index], tile, row, col, box)


def _packed(model: PreTrainedModel, patches: PatchGrid, size: Size) -> np.ndarray:
    """Which patch each of a picture's vision tokens is; -1 for a newline or a CLS."""
    tiles, extra = int(patches.tile.max()) + 1, cls_tokens(model)
    strategy = getattr(model.config, "vision_feature_select_strategy", "default")
    base = getattr(model, "base_model", model)
    if not hasattr(base, "pack_image_features"):
        return np.concatenate([np.full(extra if strategy == "full" else 0, -1), np.arange(len(patches))])
    features = torch.arange(len(patches), dtype=torch.float64).view(tiles, -1, 1)
    packed, _ = base.pack_image_features(  # type: ignore[operator]
        [features],
        [(size[1], size[0])],
        vision_feature_select_strategy=strategy,
        image_newline=torch.full((1,), -1.0, dtype=torch.float64),
    )
    return packed[0][:, 0].long().numpy()
