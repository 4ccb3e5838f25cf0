"""Which part of which image each view shows that a processor makes: measured, not known.

Processors crop, pad, stretch and cut images into tiles in their own ways, and settings of the class
may win over those of its image processor. So the processor itself is asked, with images of the same
sizes whose pixels say where they are:

    black, white      an entry that is the same in both shows padding; all others are v = black +
                      (white - black) * grey, whatever the processor's mean and deviation
    ramps             grey grows along x, or along y: the grey of an entry is its place in the image
    levels            each image in a grey of its own: the grey of an entry says which image it is
                      (of more than 254 images, the digits of its number one after the other)

`views_from_places.py` finds the rectangles that these places form.

    measured_views(process, [(97, 61)], patch=8)
    [View(image=0, box=array([0., 0., 1., 1.]), rows=4, columns=4)]
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from probe.data.image_views import Size
from probe.subject.padded_patches import padded_views
from probe.subject.view_slices import slices_of, stated_slices, views_of_slices
from probe.subject.views_from_places import (
    Shape,
    View,
    mean,
    views_of_patches,
    views_of_planes,
)

Process = Callable[[list[Image.Image]], Mapping[str, Any]]  # images to the processor's tensors

SHOWN = 0.5  # of the largest change from black to white: below it an entry is padding
LEVELS = 254  # images that greys of 8 bits tell apart


def measured_views(
    process: Process, sizes: Sequence[Size], patch: int | None, name: str | None = None
) -> list[View] | None:
    """The views of images of these sizes (width, height) in the order in which the processor
    returns them; None where it returns nothing that says.

    patch: pixels along the side of a patch; None where the processor returns patches. name: of the
    tensor that is meant, where a processor returns several of pixels.
    """
    if not sizes:
        return []
    of_black = process([Image.new("RGB", size, "black") for size in sizes])
    stated = stated_shapes(of_black)
    black = pixels_of(of_black, name)
    white = pixels_of(process([Image.new("RGB", size, "white") for size in sizes]), name)
    if black is None or white is None or black.shape != white.shape:
        return None
    change = white - black
    largest = np.abs(change).max(initial=0.0)
    shows = np.abs(change) > SHOWN * largest
    divisor = np.where(shows, change, 1)

    def places(images: list[Image.Image]) -> np.ndarray | None:
        """Of each entry: the grey of the image there, NaN for padding."""
        values = pixels_of(process(images), name)
        if values is None or values.shape != black.shape:
            return None
        return np.where(shows, (values - black) / divisor, np.nan)

    x = places([ramp(size) for size in sizes])
    y = places([ramp(size, down=True) for size in sizes])
    image_of = _numbers_of_images(places, sizes)
    if x is None or y is None or image_of is None or not shows.any():
        return None
    if not holds_patches(black.shape, patch):
        shape = (-1, *black.shape[-3:])
        x = x.reshape(shape)
        y = y.reshape(shape)
        image_of = image_of.reshape(shape)
        return views_of_planes(x, y, image_of, sizes, patch or 1)
    outer = len(x) if x.ndim == 3 else 1
    x = patch_by_patch(x, patch)
    y = patch_by_patch(y, patch)
    image_of = patch_by_patch(image_of, patch)
    real = np.flatnonzero(~np.isnan(x).all(axis=1))
    of_view = [real[real // (len(x) // outer) == view] for view in range(outer)]
    if len(real) < len(x) == sum(rows * columns for rows, columns in stated):
        padded = padded_views(mean(x, 1), mean(y, 1), stated)
        if padded is not None and len(stated) == len(sizes):
            return padded
    slices = slices_of(of_view, stated_slices(of_black, len(real)))
    if slices is not None and len(slices) > len(sizes):
        return views_of_slices(x, y, image_of, slices)
    return views_of_patches(x, y, image_of, sizes, stated)


def _numbers_of_images(
    places: Callable[[list[Image.Image]], np.ndarray | None], sizes: Sequence[Size]
) -> np.ndarray | None:
    """Of each entry the number of the image that it shows, NaN for padding. Numbers are written
    with as many digits as it takes, the last one first: a digit is a grey.
    """
    base = min(len(sizes), LEVELS)
    step = 255 // (base + 1)
    number: Any = 0
    for worth in [1] if len(sizes) <= base else [1, base, base**2]:
        digits = [index // worth % base for index in range(len(sizes))]
        greys = [step * (digit + 1) for digit in digits]
        level = places([grey(size, value) for size, value in zip(sizes, greys, strict=True)])
        if level is None:
            return None
        number = number + worth * np.round(level * 255 / step - 1)
    return number


def holds_patches(shape: Sequence[int], patch: int | None) -> bool:
    """Whether pixels of this shape are patches, and not views: flat ones (Qwen-VL), or squares
    one by one (PaddleOCR-VL) or side by side in a strip one patch high (MiniCPM-V).
    """
    are_planes = len(shape) >= 4 and shape[-3] in (1, 3)
    return not are_planes or shape[-2] == patch


def patch_by_patch(values: np.ndarray, patch: int | None) -> Float[np.ndarray, "patch entry"]:
    """Entries of patches, one patch a row."""
    width = values.shape[-1]
    if values.ndim >= 4 and width in (1, 3):  # colours last: (patch, time, row, column, colour)
        return values.reshape(len(values), -1)
    if patch is None or values.ndim < 4 or values.shape[-2] != patch:
        return values.reshape(-1, width)
    colours = values.shape[-3]
    in_strip = values.reshape(-1, colours, patch, width // patch, patch)
    by_patch = in_strip.transpose(0, 3, 1, 2, 4)
    return by_patch.reshape(-1, colours * patch * patch)


def pixels_of(tensors: Mapping[str, Any], name: str | None = None) -> np.ndarray | None:
    """The values of the pixels that a processor returns; of the tensor `name`, if one is given."""
    pixels = pixel_tensor(tensors) if name is None else tensors.get(name)
    return None if pixels is None else pixels.double().numpy()


def pixel_names(tensors: Mapping[str, Any]) -> list[str]:
    """The tensors of pixels that a processor returns, by name: of real numbers, or bytes (Molmo 2's
    of videos).
    """
    return [
        name
        for name, value in tensors.items()
        if name.startswith("pixel_values")
        and torch.is_tensor(value)
        and (value.is_floating_point() or value.dtype == torch.uint8)
    ]


def pixel_tensor(tensors: Mapping[str, Any]) -> torch.Tensor | None:
    """The pixels that a processor returns, under whatever name: pixel_values, pixel_values_images,
    or else the first tensor of real numbers (`image_patches` of Fuyu until transformers 5.19).
    """
    by_name = [tensors[name] for name in pixel_names(tensors)]
    real = [
        value
        for value in tensors.values()
        if torch.is_tensor(value) and value.ndim >= 2 and value.is_floating_point()
    ]
    return next(iter([*by_name, *real]), None)


def stated_shapes(tensors: Mapping[str, Any]) -> list[Shape]:
    """Rows and columns of patches of each image or video, where a processor states them."""
    grids = [value for name, value in tensors.items() if name.endswith("grid_thw")]
    return [(int(rows), int(columns)) for _, rows, columns in torch.as_tensor(*grids[:1] or [[]])]


def grey(size: Size, level: int) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def ramp(size: Size, down: bool = False) -> Image.Image:
    """Grey that grows evenly over the image: the place of a pixel's middle, as a share of 255.

    8 bits are too coarse for a line of thousands of pixels: neighbours across the ramp are rounded
    differently, so that their mean is exact.
    """
    length, across = size[::-1] if down else size
    place = (np.arange(length) + 0.5) / length * 255
    rounding = (np.arange(across) * 0.6180339887) % 1
    rounded = np.floor(place[None] + rounding[:, None])
    grey = rounded.clip(0, 255).astype(np.uint8)
    if down:
        grey = grey.T
    return Image.fromarray(grey).convert("RGB")
