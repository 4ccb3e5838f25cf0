"""Which part of which image each view shows that a processor makes: measured, not known.

Processors crop, pad, stretch and cut images into tiles in their own ways, and settings of the class
may win over those of its image processor. So the processor itself is asked, with images of the same
sizes whose pixels say where they are:

    black, white      an entry that is the same in both shows padding; all others are v = black +
                      (white - black) * grey, whatever the processor's mean and deviation
    ramps             grey grows along x, or along y: the grey of an entry is its place in the image
    levels            each image in a grey of its own: the grey of an entry says which image it is

A view is an affine map of its image, axis by axis: a straight line through its places is found
by least squares, and gives the rectangle to a small part of a pixel.

    measured_views(process, [(97, 61)], patch=8)
    [View(image=0, box=array([0., 0., 1., 1.]), rows=4, columns=4)]
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image

from probe.data.image_views import WHOLE, Size

Process = Callable[[list[Image.Image]], Mapping[str, Any]]  # images to the processor's tensors

SHOWN = 0.5  # of the largest change from black to white: below it an entry is padding
STRAIGHT = 0.02  # of the image: places further from the line do not form an affine view
MARGIN = 4  # pixels at an image's edge, where resizing repeats the outermost one


@dataclass(frozen=True)
class View:
    """What the encoder gets as one image: a rectangle of the user's, in fractions of it (beyond
    [0, 1] where it shows padding), and its patches in rows and columns. `order`: which patch,
    counted row by row, comes when, where a processor returns patches (Qwen-VL: by merged cells).
    """

    image: int
    box: Float[np.ndarray, "edge=4"]
    rows: int
    columns: int
    order: Int[np.ndarray, " patch"] | None = None


def measured_views(process: Process, sizes: Sequence[Size], patch: int | None) -> list[View] | None:
    """The views of images of these sizes (width, height) in the order in which the processor
    returns them; None where it returns nothing that says.

    patch: pixels along the side of a patch; None where the processor returns patches.
    """
    if not sizes:
        return []
    black = pixels_of(process([Image.new("RGB", size, "black") for size in sizes]))
    white = pixels_of(process([Image.new("RGB", size, "white") for size in sizes]))
    if black is None or white is None or black.shape != white.shape:
        return None
    change = white - black
    largest = np.abs(change).max(initial=0.0)
    shows = np.abs(change) > SHOWN * largest
    divisor = np.where(shows, change, 1)

    def places(images: list[Image.Image]) -> np.ndarray | None:
        """Of each entry: the grey of the image there, NaN for padding."""
        values = pixels_of(process(images))
        if values is None or values.shape != black.shape:
            return None
        return np.where(shows, (values - black) / divisor, np.nan)

    x = places([ramp(size) for size in sizes])
    y = places([ramp(size, down=True) for size in sizes])
    step = 255 // (len(sizes) + 1)
    level = places([grey(size, step * (index + 1)) for index, size in enumerate(sizes)])
    if x is None or y is None or level is None or not shows.any():
        return None
    image_of = np.where(np.isnan(level), np.nan, level * 255 / step - 1)
    if not holds_patches(black.shape, patch):
        shape = (-1, *black.shape[-3:])
        x = x.reshape(shape)
        y = y.reshape(shape)
        image_of = image_of.reshape(shape)
        return views_of_planes(x, y, image_of, sizes, patch or 1)
    x = _patch_by_patch(x, patch)
    y = _patch_by_patch(y, patch)
    image_of = _patch_by_patch(image_of, patch)
    return views_of_patches(x, y, image_of, sizes)


def holds_patches(shape: Sequence[int], patch: int | None) -> bool:
    """Whether pixels of this shape are patches, and not views: flat ones (Qwen-VL), or squares
    one by one (PaddleOCR-VL) or side by side in a strip one patch high (MiniCPM-V).
    """
    are_planes = len(shape) >= 4 and shape[-3] in (1, 3)
    return not are_planes or shape[-2] == patch


def _patch_by_patch(values: np.ndarray, patch: int | None) -> Float[np.ndarray, "patch entry"]:
    """Entries of patches, one patch a row."""
    width = values.shape[-1]
    if patch is None or values.ndim < 4 or values.shape[-2] != patch:
        return values.reshape(-1, width)
    colours = values.shape[-3]
    in_strip = values.reshape(-1, colours, patch, width // patch, patch)
    by_patch = in_strip.transpose(0, 3, 1, 2, 4)
    return by_patch.reshape(-1, colours * patch * patch)


def pixels_of(tensors: Mapping[str, Any]) -> np.ndarray | None:
    """The values of the pixels that a processor returns."""
    pixels = pixel_tensor(tensors)
    return None if pixels is None else pixels.double().numpy()


def pixel_tensor(tensors: Mapping[str, Any]) -> torch.Tensor | None:
    """The pixels that a processor returns, under whatever name: pixel_values, pixel_values_images,
    or else the first tensor of real numbers (`image_patches` of Fuyu until transformers 5.19).
    """
    real = {
        name: value
        for name, value in tensors.items()
        if torch.is_tensor(value) and value.ndim >= 2 and value.is_floating_point()
    }
    by_name = [value for name, value in real.items() if name.startswith("pixel_values")]
    return next(iter([*by_name, *real.values()]), None)


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


def views_of_planes(
    x: Float[np.ndarray, "view channel row column"],
    y: Float[np.ndarray, "view channel row column"],
    image_of: Float[np.ndarray, "view channel row column"],
    sizes: Sequence[Size],
    patch: int,
) -> list[View] | None:
    found = []
    for of_x, of_y, of_image in zip(x, y, image_of, strict=True):
        if np.isnan(of_x).all():
            continue  # a batch's filling
        image = round(float(np.nanmedian(of_image)))
        if not 0 <= image < len(sizes):
            return None
        across = _edges(_mean(of_x, (0, 1)), sizes[image][0])
        down = _edges(_mean(of_y, (0, 2)), sizes[image][1])
        if across is None or down is None:
            return None
        box = np.array([across[0], down[0], across[1], down[1]])
        height, width = of_x.shape[-2:]
        found.append(View(image, box, height // patch, width // patch))
    return found


def views_of_patches(
    x: Float[np.ndarray, "patch entry"],
    y: Float[np.ndarray, "patch entry"],
    image_of: Float[np.ndarray, "patch entry"],
    sizes: Sequence[Size],
) -> list[View] | None:
    """One view an image, whose patches come one by one in any order."""
    real = ~np.isnan(x).all(axis=1)
    image = np.round(_mean(image_of[real], 1)).astype(int)
    found = []
    for number in range(len(sizes)):
        own = image == number
        x_of_patch = _mean(x[real][own], 1)
        y_of_patch = _mean(y[real][own], 1)
        side = isqrt(int(own.sum()))
        if tuple(sizes[number]) == (1, 1) and own.any() and side**2 == own.sum():
            # one pixel, enlarged to a square: its patches all look the same
            found.append(View(number, np.array(WHOLE, float), side, side))
            continue
        columns = _spaced(x_of_patch)
        rows = _spaced(y_of_patch)
        if columns is None or rows is None or len(columns) * len(rows) != own.sum():
            return None
        left, right = _edges_of_centres(columns)
        top, bottom = _edges_of_centres(rows)
        column = np.abs(x_of_patch[:, None] - columns).argmin(1)
        row = np.abs(y_of_patch[:, None] - rows).argmin(1)
        order = row * len(columns) + column
        is_order = len(np.unique(order)) == len(order)
        box = np.array([left, top, right, bottom])
        found.append(View(number, box, len(rows), len(columns), order if is_order else None))
    return found


def _mean(values: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
    """The mean over what is not padding; NaN where all is."""
    real = ~np.isnan(values)
    count = real.sum(axis=axes)
    total = np.where(real, values, 0).sum(axis=axes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _edges(places: Float[np.ndarray, "pixel"], length: int) -> tuple[float, float] | None:
    """Where in the image the first pixel of a line begins and the last one ends. None where its
    places are not on a straight line.
    """
    pixel = np.flatnonzero(~np.isnan(places))
    place = places[pixel]
    margin = min(0.3, MARGIN / length)
    is_inner = (place > margin) & (place < 1 - margin)
    middle = pixel[is_inner] + 0.5
    inner = place[is_inner]
    if length < 3 or len(inner) < 2 or np.ptp(inner) == 0:
        # too few pixels for a line: what is not padding is the whole image
        first = pixel[0]
        last = pixel[-1] + 1
        slope = 1 / (last - first)
        return -first * slope, (len(places) - first) * slope
    slope, offset = np.polyfit(middle, inner, 1)
    error = np.abs(offset + slope * middle - inner).max()
    if error > STRAIGHT + 2 / length:
        return None
    return float(offset), float(offset + slope * len(places))


def _spaced(places: Float[np.ndarray, "patch"]) -> np.ndarray | None:
    """The different places among many that are evenly spaced, in order."""
    ordered = np.sort(places)
    if not len(ordered) or np.isnan(ordered).any():
        return None
    gaps = np.diff(ordered)
    most = gaps.max(initial=0.0)
    if most < 2 / 255:  # less than rounding: one place
        return ordered[:1] * 0 + ordered.mean()
    groups = np.split(ordered, np.flatnonzero(gaps > most / 2) + 1)
    return np.array([group.mean() for group in groups])


def _edges_of_centres(places: Float[np.ndarray, "place"]) -> tuple[float, float]:
    """Where the first of evenly spaced patches begins and the last one ends."""
    if len(places) == 1:
        return float(WHOLE[0]), float(WHOLE[2])
    inner = np.arange(len(places))
    if len(places) > 4:
        inner = inner[1:-1]
    slope, offset = np.polyfit(inner + 0.5, places[inner], 1)
    return float(offset), float(offset + slope * len(places))
