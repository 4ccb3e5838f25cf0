"""The views of an image, from the place in it that each entry of a processor's pixels shows.

    views_of_planes(x, y, image_of, [(97, 61)], patch=8)
    views_of_patches(x, y, image_of, [(97, 61)])

A view is an affine map of its image, axis by axis: a straight line through its places is found by
least squares, and gives the rectangle to a small part of a pixel. An image of few pixels has no
line where it is enlarged: entries then show one and the same pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from jaxtyping import Float, Int

from probe.data.image_views import WHOLE, Size

Shape = tuple[int, int]  # rows, columns

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
        across = _edges(mean(of_x, (0, 1)), sizes[image][0])
        down = _edges(mean(of_y, (0, 2)), sizes[image][1])
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
    stated: Sequence[Shape] = (),
) -> list[View] | None:
    """One view an image, whose patches come one by one in any order. `stated`: rows and columns of
    each image's patches, which decide where places do not: in an image of few pixels.
    """
    real = ~np.isnan(x).all(axis=1)
    image = np.round(mean(image_of[real], 1)).astype(int)
    found = []
    for number, size in enumerate(sizes):
        own = image == number
        x_of_patch = mean(x[real][own], 1)
        y_of_patch = mean(y[real][own], 1)
        view = _view_of_patches(x_of_patch, y_of_patch, number, size, stated[number : number + 1])
        if view is None:
            return None
        found.append(view)
    return found


def _view_of_patches(
    x: Float[np.ndarray, "patch"],
    y: Float[np.ndarray, "patch"],
    image: int,
    size: Size,
    stated: Sequence[Shape],
) -> View | None:
    """The view of one image whose patches have their middles at these places."""
    columns = spaced(x)
    rows = spaced(y)
    if columns is None or rows is None:
        return None
    is_grid = len(columns) * len(rows) == len(x)
    if not is_grid or min(size) <= 2 * MARGIN:
        measured = [(len(rows), len(columns))]
        shapes = measured if is_grid else stated or _shapes_like(len(x), size)
        view = _view_of_few_pixels(x, y, image, size, shapes)
        if view is not None or not is_grid:
            return view
    left, right = _edges_of_centres(columns)
    top, bottom = _edges_of_centres(rows)
    column = np.abs(x[:, None] - columns).argmin(1)
    row = np.abs(y[:, None] - rows).argmin(1)
    order = row * len(columns) + column
    is_order = len(np.unique(order)) == len(order)
    box = np.array([left, top, right, bottom])
    return View(image, box, len(rows), len(columns), order if is_order else None)


def _shapes_like(patches: int, size: Size) -> list[Shape]:
    """Every number of rows and of columns that gives so many square patches, that which is most
    like the image first.
    """
    shapes = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    width, height = size
    return sorted(shapes, key=lambda shape: abs(log(shape[1] / shape[0] * height / width)))


def _view_of_few_pixels(
    x: Float[np.ndarray, "patch"],
    y: Float[np.ndarray, "patch"],
    image: int,
    size: Size,
    shapes: Sequence[Shape],
) -> View | None:
    """A whole image that is enlarged so much that several patches show one pixel: the first of the
    shapes whose patches would lie where these do, to a pixel.
    """
    for rows, columns in shapes:
        if rows * columns != len(x):
            continue
        row, column = (axis.ravel() for axis in np.indices((rows, columns)))
        apart_x = np.abs(np.sort(x) - np.sort(_centres(column, columns, size[0])))
        apart_y = np.abs(np.sort(y) - np.sort(_centres(row, rows, size[1])))
        if (apart_x * size[0]).max() < 1 and (apart_y * size[1]).max() < 1:
            # along its longer side an image tells more patches apart
            by_columns = size[0] > size[1]
            along, across = (x, y) if by_columns else (y, x)
            lines = np.argsort(along, kind="stable").reshape(-1, rows if by_columns else columns)
            within_line = np.argsort(across[lines], axis=1, kind="stable")
            by_place = np.take_along_axis(lines, within_line, axis=1)
            by_row = by_place.T if by_columns else by_place
            order = np.argsort(by_row.ravel())
            return View(image, np.array(WHOLE, float), rows, columns, order)
    return None


def _centres(index: np.ndarray, count: int, pixels: int) -> np.ndarray:
    """Where the middle of each of `count` patches lies, at most that of the outermost pixel."""
    return ((index + 0.5) / count).clip(0.5 / pixels, 1 - 0.5 / pixels)


def mean(values: np.ndarray, axes: int | tuple[int, ...]) -> np.ndarray:
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
    half = 0.5 / length  # of an image's pixel
    is_whole = place.min() < 1.2 * half and place.max() > 1 - 1.2 * half
    is_inner = _beyond(place, min(0.3, MARGIN / length))
    if 4 * is_inner.sum() < len(place):  # a tile of an image of few pixels
        is_inner = _beyond(place, half)
    middle = pixel[is_inner] + 0.5
    inner = place[is_inner]
    if (length < 3 and is_whole) or len(inner) < 2 or np.ptp(inner) == 0:
        # too few pixels for a line: what is not padding shows all of them, or one
        first_edge = 0.0 if is_whole else place.mean() - half
        last_edge = 1.0 if is_whole else place.mean() + half
        slope = (last_edge - first_edge) / (pixel[-1] + 1 - pixel[0])
        offset = first_edge - pixel[0] * slope
        return float(offset), float(offset + slope * len(places))
    slope, offset = np.polyfit(middle, inner, 1)
    error = np.abs(offset + slope * middle - inner).max()
    if error > STRAIGHT + 2 / length:
        return None
    return float(offset), float(offset + slope * len(places))


def _beyond(place: np.ndarray, margin: float) -> np.ndarray:
    """Which places lie further than a margin from both edges of the image."""
    return (place > margin) & (place < 1 - margin)


def spaced(places: Float[np.ndarray, "patch"]) -> np.ndarray | None:
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
