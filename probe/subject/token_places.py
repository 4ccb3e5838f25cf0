"""Where the vision tokens of a prompt lie, for any processor and model.

    grid, patches = token_places(model, tensors, process, sizes)

The placeholders say how many vision tokens there are, the processor itself says which part of an
image each of its views shows (`measured_views.py`), and how tokens divide a view follows from
both: a token stands for s x s patches, with the one s that gives as many tokens as there are
placeholders. A model that packs features itself (LLaVA-NeXT's un-padding and newlines) has it done
to coordinates. Where tokens have looked at the whole image (learned queries: resamplers, Q-Formers)
or the numbers do not fit, no place is claimed: boxes are NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from transformers import PreTrainedModel

from probe.data.image_views import Size, square_around, within
from probe.data.patch_grid import PatchGrid
from probe.hooks.model_state import state_of
from probe.hooks.model_structure import cls_tokens, text_decoder, vision_encoder, vision_positions
from probe.subject.fed_tokens import places_of_tensors
from probe.subject.marker_tokens import rows_between_markers
from probe.subject.measured_views import Process, measured_views, pixel_names
from probe.subject.pooled_patches import pooled
from probe.subject.token_grid import of_regions, packed_grid
from probe.subject.view_cells import cells_of, divided, evenly_divided, nowhere, tile_numbers
from probe.subject.views_from_places import View

MOST_KEPT = 1000  # measurements of a processor, one for each size of image


def token_places(
    model: PreTrainedModel,
    tensors: Mapping[str, Any],
    process: Process,
    sizes: Sequence[Size],
    settings: str = "",
) -> tuple[PatchGrid, PatchGrid]:
    """Where the vision tokens of one row lie, and where the encoder's patches (none where that is
    not known). `sizes`: width and height of the images that `process` takes. `settings`: those of
    the processor; with equal ones images of equal sizes are measured once.
    """
    is_token = vision_positions(model, tensors["input_ids"])[0].numpy()
    tokens = int(is_token.sum())
    views = _known_views(model, tensors, process, sizes, settings)
    if views is None:
        return unknown_places(is_token, len(sizes)), PatchGrid.join([])
    views = _cut_to_sizes(views, tensors, patch_size(model))
    patches = patches_of(views)
    if (by_number := pooled(tensors, tokens, patches)) is not None:
        return by_number, patches
    if len(names := pixel_names(tensors)) > 1:
        known = partial(_known_views, model, tensors, process, sizes, settings)
        grid = _of_tensors(model, tensors, is_token, {name: known(name) for name in names})
        if grid is not None:  # the encoder is called for each, in an order of its own
            return grid, PatchGrid.join([])
    if hasattr(model.base_model, "pack_image_features"):
        for cells in evenly_divided(views):
            grid = _packed(model, cells, tensors, sizes)
            if grid is not None and len(grid) == tokens:
                return grid, patches
    elif (stated := stated_cells(model, views, tokens)) is not None:
        return stated, patches
    elif not has_learned_queries(model, tokens // max(1, len(views))):
        for before in {0, cls_tokens(model)}:  # with and without the encoder's class token
            grid = divided(views, tokens, before)
            if grid is not None:
                return grid, patches
        if (grid := _between_markers(model, tensors, is_token, views)) is not None:
            return grid, patches
    return unknown_places(is_token, len(sizes), views), patches


def _of_tensors(
    model: PreTrainedModel,
    tensors: Mapping[str, Any],
    is_token: Bool[np.ndarray, "token"],
    views: Mapping[str, list[View] | None],
) -> PatchGrid | None:
    """The tokens that several tensors of pixels make; None where they make the same ones."""
    found = {name: own for name, own in views.items() if own is not None}
    if len(found) < len(views):
        return None
    known = state_of(model).measured_views
    shapes = [(name, tuple(getattr(value, "shape", ()))) for name, value in tensors.items()]
    boxes = [view.box.tobytes() for own in found.values() for view in own]
    key = ("tensors", is_token.tobytes(), tuple(shapes), tuple(boxes))
    if key not in known:
        known[key] = places_of_tensors(model, tensors, is_token, found)
    return known[key]


def _between_markers(
    model: PreTrainedModel,
    tensors: Mapping[str, Any],
    is_token: Bool[np.ndarray, "token"],
    views: Sequence[View],
) -> PatchGrid | None:
    """The tokens of rows that markers of the same id end; the markers lie nowhere."""
    known = state_of(model).measured_views
    shapes = [(name, tuple(getattr(value, "shape", ()))) for name, value in tensors.items()]
    key = ("markers", is_token.tobytes(), tuple(shapes))
    if key not in known:
        known[key] = rows_between_markers(model, tensors, is_token, views)
    if known[key] is None:
        return None
    side, indices = known[key]
    cells = [cells_of(view, 0, side) for view in views]
    return PatchGrid.join([own.at(index) for own, index in zip(cells, indices, strict=True)])


def stated_cells(model: PreTrainedModel, views: Sequence[View], tokens: int) -> PatchGrid | None:
    """The tokens of the views, where the model's config says which patches each is made of; None
    where it doesn't, or says another number of them.
    """
    regions = getattr(model.config, "token_regions", None)
    if regions is None or not views or tokens % len(views):
        return None
    of_view = regions(tokens // len(views))
    side = model.config.patches_per_side
    fits = all((view.rows, view.columns) == (side, side) for view in views)
    if not fits or len(of_view) * len(views) != tokens:
        return None
    patches = patches_of(views)
    starts = range(0, len(patches), side * side)
    own = [patches.at(np.arange(start, start + side * side)) for start in starts]
    return PatchGrid.join([of_regions(each, of_view) for each in own])


def _known_views(
    model: PreTrainedModel,
    tensors: Mapping[str, Any],
    process: Process,
    sizes: Sequence[Size],
    settings: str,
    name: str | None = None,
) -> list[View] | None:
    """`name`: as in `measured_views`."""
    known = state_of(model).measured_views
    pixels = [
        (name, tuple(getattr(value, "shape", ())))
        for name, value in tensors.items()
        if name.startswith("pixel")
    ]
    key = (settings, tuple(sizes), tuple(pixels), name)
    if not settings:
        return measured_views(process, sizes, patch_size(model), name)
    if key not in known:
        if len(known) >= MOST_KEPT:
            known.clear()
        known[key] = measured_views(process, sizes, patch_size(model), name)
    return known[key]


def of_original(
    grid: PatchGrid, images: Sequence[Image.Image], shown: Sequence[Image.Image]
) -> PatchGrid:
    """Places in images that were padded to squares before the processor got them, as places in the
    images themselves.
    """
    boxes = grid.box.copy()
    for number, (image, padded) in enumerate(zip(images, shown, strict=True)):
        if image.size != padded.size:
            own = grid.image == number
            boxes[own] = within(square_around(image.size), boxes[own])
    return replace(grid, box=boxes)


def patch_size(model: PreTrainedModel) -> int | None:
    """Pixels along the side of one of the encoder's patches, None where the config doesn't say. Of
    an encoder of several parts it is that of the first which says it (DeepSeek-OCR 2: SAM).
    """
    config: Any = model.config
    encoder = getattr(config, "vision_config", None)
    inside = [] if encoder is None else [getattr(encoder, name) for name in encoder.sub_configs]
    for part in (encoder, config, *inside):
        size = getattr(part, "patch_size", None)
        size = size[0] if isinstance(size, list | tuple) else size
        if isinstance(size, int):
            return size
    return None


def patches_of(views: Sequence[View]) -> PatchGrid:
    """The patches of every view in the order in which the processor returns them: row by row, if
    it returns views as pixels.
    """
    grids = []
    for view, tile in zip(views, tile_numbers(views), strict=True):
        by_rows = cells_of(view, tile, 1)
        grids.append(by_rows if view.order is None else by_rows.at(view.order))
    return PatchGrid.join(grids)


def unknown_places(
    is_token: Bool[np.ndarray, "token"], images: int, views: Sequence[View] = ()
) -> PatchGrid:
    """Tokens of which only the image is known: as many for each view, or else a run of tokens an
    image, or else an even share.
    """
    tokens = int(is_token.sum())
    changes = np.flatnonzero(np.diff(is_token, prepend=False, append=False))
    runs = changes[1::2] - changes[::2]
    if views and tokens % len(views) == 0:
        counts = [(view.image, tokens // len(views)) for view in views]
    elif len(runs) == images:
        counts = list(enumerate(runs.tolist()))
    else:
        ends = np.linspace(0, tokens, max(1, images) + 1).astype(int)
        counts = list(enumerate(np.diff(ends).tolist()))
    return PatchGrid.join([nowhere(image, count) for image, count in counts])


def has_learned_queries(model: PreTrainedModel, tokens: int) -> bool:
    """Whether the model makes `tokens` tokens of an image by learned queries that look at all of
    it: a parameter with a row for each, outside of encoder, LLM and what reads sound.
    """
    of_sound = (
        part
        for part in model.base_model.children()
        if getattr(part, "main_input_name", None) in ("input_features", "input_values")
    )
    parts = (text_decoder(model), vision_encoder(model), *of_sound)
    inside = {p for part in parts if part is not None for p in part.parameters()}
    for name, parameter in model.named_parameters():
        is_weight = name.endswith(("weight", "bias"))
        if parameter in inside or is_weight or parameter.ndim not in (2, 3):
            continue
        if parameter.shape[-2] >= tokens > 1 and parameter.shape[0] in (1, parameter.shape[-2]):
            return True
    return False


def _cut_to_sizes(
    views: Sequence[View], tensors: Mapping[str, Any], patch: int | None
) -> list[View]:
    """Views without the filling of a batch, where a processor states the size (height, width) of
    each resized image (Pixtral)."""
    stated = tensors.get("image_sizes")
    pixels = tensors.get("pixel_values")
    if stated is None or not torch.is_tensor(pixels) or pixels.ndim != 4 or not patch:
        return list(views)
    sizes = torch.as_tensor(stated).tolist()
    height, width = pixels.shape[-2:]
    if len(sizes) != len(views) or any(h > height or w > width for h, w in sizes):
        return list(views)
    cut = []
    for view, (h, w) in zip(views, sizes, strict=True):
        box = within(view.box, np.array([0, 0, w / width, h / height]))
        cut.append(View(view.image, box, h // patch, w // patch))
    return cut


def _packed(
    model: PreTrainedModel, patches: PatchGrid, tensors: Mapping[str, Any], sizes: Sequence[Size]
) -> PatchGrid | None:
    stated = tensors.get("image_sizes")
    sizes_hw = [(height, width) for width, height in sizes]
    if stated is not None:
        sizes_hw = torch.as_tensor(stated).tolist()
    grids = []
    for image, size in enumerate(sizes_hw):
        own = patches.at(np.flatnonzero(patches.image == image))
        grid = packed_grid(model, own, size)
        if grid is None:
            return None
        grids.append(grid)
    return PatchGrid.join(grids)
