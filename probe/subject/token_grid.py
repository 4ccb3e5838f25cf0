"""Where in the image a vision token lies: from the image to the pixels, to patches, to tokens.

A processor shows the encoder one view of the image, or several (LLaVA-NeXT: the whole image and its
tiles). A view is a rectangle of the original image, in fractions of it, which may reach over the
edge where it was padded:

    crop      the middle square of the image, as Hugging Face's processor takes it
    pad       a square around the image, as LLaVA-1.5 was trained
              (Source: haotian-liu/LLaVA, expand2square)
    squash    the whole image, stretched
    anyres    the whole image, stretched, then tiles of the best resolution (Source: LLaVA-NeXT)

A processor with a `resolution_ratio` N shows N x N sub-images row by row, each fitted like an image
of its own, and the whole image last (Source: LLaVA-Mini, `split_image`).

Patches divide a view evenly. Which patches reach the LLM, and in which order, only the model knows:
coordinates are pushed through its own packing in place of features. A model that compresses an
image to C x C tokens has cells in place of patches: they divide what is compressed evenly, though
each token has looked at all of it. A config may also say which patches each token is made of
(`token_regions`, those of LLaVA-Mini's rivals).
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from transformers import PreTrainedModel

from probe.data.image_views import Size, bounding_box, sub_image_views, views, within
from probe.data.patch_grid import PatchGrid
from probe.hooks.model_structure import cls_tokens


def encoder_grid(
    model: PreTrainedModel, processor: Any, sizes: Sequence[Size], aspect: str
) -> PatchGrid:
    """The encoder's patches, CLS left out: every view of every image in the order of
    `pixel_values`.

    `sizes` are the width and height of the original images.
    """
    return PatchGrid.join(
        [_patches(model, processor, size, aspect, image) for image, size in enumerate(sizes)]
    )


def _patches(
    model: PreTrainedModel, processor: Any, size: Size, aspect: str, image: int
) -> PatchGrid:
    ratio = getattr(processor, "resolution_ratio", 1)
    limits = None
    if ratio > 1:
        rects, limits = sub_image_views(processor, size, aspect, ratio)
        # the whole image comes last, and is 0 everywhere
        tiles = np.array([*range(1, len(rects)), 0])
    else:
        rects = views(processor.image_processor, size, aspect)
        tiles = np.arange(len(rects))
    side = patches_per_side(model)
    view, row, col = (axis.ravel() for axis in np.indices((len(rects), side, side)))
    inner = np.stack([col, row, col + 1, row + 1], axis=-1) / side
    box = within(rects[view], inner)
    if limits is not None:
        corner = limits[view, :2]
        opposite = limits[view, 2:]
        box = np.clip(box, np.tile(corner, 2), np.tile(opposite, 2))
    return PatchGrid(np.full_like(view, image), tiles[view], row, col, box)


def has_square_views(model: PreTrainedModel, processor: Any) -> bool:
    """Whether the settings of model and image processor say which square views there are: those of
    LLaVA-1.5, LLaVA-NeXT and LLaVA-Mini do.
    """
    vision = getattr(model.config, "vision_config", None)
    edges = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    image_processor = processor.image_processor
    known = all(hasattr(image_processor, name) for name in ("size", "do_center_crop"))
    return known and all(isinstance(edge, int) for edge in edges)


def depends_on_size(subject: Any) -> bool:
    """Whether the number of a Subject's vision tokens may depend on the size of an image: where
    the settings don't say that every view is one square.
    """
    return subject.aspect == "anyres" or not has_square_views(subject.model, subject.processor)


def patches_per_side(model: PreTrainedModel) -> int:
    """Patches along one side of a view."""
    vision = model.config.vision_config
    return vision.image_size // vision.patch_size


def vision_grid(
    model: PreTrainedModel, processor: Any, sizes: Sequence[Size], aspect: str
) -> PatchGrid | None:
    """The vision tokens that the LLM gets, in the order of the sequence; None where the model packs
    another number of features than it has patches. `sizes`: width, height of the originals.
    """
    grids = []
    compressed = getattr(model.config, "tokens_per_frame", None)
    regions = getattr(model.config, "token_regions", None)
    for image, size in enumerate(sizes):
        patches = _patches(model, processor, size, aspect, image)
        if regions is not None:
            grid = of_regions(patches, regions(processor.tokens_per_image))
        elif compressed is not None:
            grid = _compressed(patches, compressed(views=len(np.unique(patches.tile))))
        else:
            grid = packed_grid(model, patches, (size[1], size[0]))
        if grid is None:
            return None
        grids.append(grid)
    return PatchGrid.join(grids)


def joined(patches: PatchGrid) -> PatchGrid:
    """The sub-images of every image as one grid row by row, followed by the patches of the
    whole image.
    """
    tiles = int(patches.tile.max(initial=0))
    ratio = max(1, math.isqrt(tiles))
    sub_image = np.maximum(patches.tile - 1, 0)
    sub_row, sub_col = np.divmod(sub_image, ratio)
    is_whole = (patches.tile == 0) & (ratio > 1)
    # the last key sorts first
    order = (patches.col, sub_col, patches.row, sub_row, is_whole, patches.image)
    return patches.at(np.lexsort(order))


def sub_images(patches: PatchGrid) -> PatchGrid:
    """What of `joined` patches is compressed: all but the whole image, where that is not all there
    is.
    """
    return patches.at(np.flatnonzero((patches.tile > 0) | (patches.tile.max(initial=0) == 0)))


def _compressed(patches: PatchGrid, tokens: int) -> PatchGrid:
    """The cells of one image's C x C tokens, or all its patches where they are not compressed."""
    if tokens == len(patches):
        return joined(patches)
    side = math.isqrt(tokens)
    row, col = (axis.ravel() for axis in np.indices((side, side)))
    inner_box = bounding_box(sub_images(patches).box)
    cells = np.stack([col, row, col + 1, row + 1], axis=-1) / max(side, 1)
    image = np.full_like(row, patches.image[0])
    return PatchGrid(image, np.zeros_like(row), row, col, within(inner_box, cells))


def of_regions(patches: PatchGrid, regions: Sequence[tuple | None]) -> PatchGrid:
    """The tokens of one view that are made of these patches each (top, left, bottom, right), None
    for one that is made of the whole view and lies nowhere.
    """
    columns = int(patches.col.max()) + 1
    tile = int(patches.tile[0])
    boxes: list[np.ndarray] = []
    places: list[tuple[int, int, int]] = []
    for region in regions:
        if region is None:
            boxes.append(np.full(4, np.nan))
            places.append((-1, -1, -1))
            continue
        top, left, bottom, right = region
        first = patches.box[top * columns + left]
        last = patches.box[(bottom - 1) * columns + right - 1]
        boxes.append(np.concatenate([first[:2], last[2:]]))
        row = top // (bottom - top)
        col = left // (right - left)
        places.append((tile, row, col))
    image = np.full(len(regions), patches.image[0])
    tiles, rows, cols = np.array(places, dtype=np.int64).reshape(-1, 3).T
    return PatchGrid(image, tiles, rows, cols, np.array(boxes).reshape(-1, 4))


def reduced_grid(patches: PatchGrid, left: Sequence[Int[np.ndarray, "_"]]) -> PatchGrid:
    """The tokens that a reducer leaves. `left`: the patch that each stands for, counted in its
    image; -1: none.
    """
    numbers = [np.flatnonzero(patches.image == image) for image in range(len(left))]
    grids = [patches.at(own).at(index) for own, index in zip(numbers, left, strict=True)]
    return PatchGrid.join(grids)


def packed_grid(
    model: PreTrainedModel, patches: PatchGrid, size: Sequence[int]
) -> PatchGrid | None:
    """The vision tokens of one image, after a model's own `pack_image_features`, where it has one:
    coordinates are packed in place of features. size: height and width of the image. None where it
    packs another number of features.

    A token between patches (features that were interpolated to fewer) gets the box between theirs.
    """
    strategy = getattr(model.config, "vision_feature_select_strategy", "default")
    pack = getattr(getattr(model, "base_model", model), "pack_image_features", None)
    if pack is None:
        cls_count = cls_tokens(model) if strategy == "full" else 0
        return patches.at(np.concatenate([np.full(cls_count, -1), np.arange(len(patches))]))
    # What a patch is known by takes the place of its features: four numbers, then its box.
    place = np.stack([patches.image, patches.tile, patches.row, patches.col], axis=-1)
    features = torch.from_numpy(np.concatenate([place, patches.box], axis=-1))
    width = features.shape[1]
    views = len(np.unique(patches.tile))
    options = {
        "vision_feature_select_strategy": strategy,
        "vision_aspect_ratio": getattr(model.config, "vision_aspect_ratio", None),
    }
    known = inspect.signature(pack).parameters
    options = {name: value for name, value in options.items() if name in known and value}
    newline = torch.full((width,), torch.nan, dtype=features.dtype)
    by_view = features.view(views, -1, width)
    try:
        (packed,) = _packed(pack([by_view], [tuple(size)], image_newline=newline, **options))
    except (RuntimeError, ValueError):  # torch's and the model's own words for a wrong number
        return None
    values = packed.numpy()
    place = np.where(np.isnan(values[:, :4]), -1, values[:, :4])
    _, tile, row, col = place.round().astype(np.int64).T
    image = np.full(len(values), patches.image[0])
    return PatchGrid(image, tile, row, col, values[:, 4:])


def packed_indices(
    pack: Callable[..., Any], views: int, tokens: int, size: Any, **options: Any
) -> Int[torch.Tensor, " packed"]:
    """Which feature (view * `tokens` + token) each token of one image is, after a model's own
    `pack_image_features`; -1 for a newline token. size: height and width of the image. options: the
    method's other arguments.
    """
    indices = torch.arange(views * tokens, dtype=torch.float64).view(views, tokens, 1)
    newline = torch.full((1,), -1.0, dtype=torch.float64)
    (packed,) = _packed(pack([indices], [size], image_newline=newline, **options))
    return packed[:, 0].long()


def _packed(returned: Any) -> Sequence[Any]:
    """The features of each image, of what `pack_image_features` returns: these alone (Granite
    Vision), or with their numbers (LLaVA-NeXT).
    """
    return returned[0] if isinstance(returned, tuple) else returned
