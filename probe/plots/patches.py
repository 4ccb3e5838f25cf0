"""Patches over an image: what all figures with an image draw.

Boxes are left, top, right, bottom as fractions of the original image, so it does not matter how the
image was fitted to the encoder: patches on the bars of a padded image lie outside and are cut off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, Locator, LogLocator, MaxNLocator

from probe.errors import ProbeError

_FITTED = {
    "crop": "preprocessing: crop (the model sees the square in the middle only)",
    "pad": "preprocessing: pad (to a square; patches on the bars lie outside the image)",
    "anyres": "preprocessing: any-resolution (the whole image, and tiles at a higher resolution)",
}
_OUTLINE = 64  # points along the longer side of an image, for its outlines
_SEPARATED = 0.7  # of the variance: two parts of an image are told apart (0.64 of normal noise)
_DECADES = 3  # of a logarithmic scale at most, unless its floor is given
_TICK = 0.5  # inches that the label of a tick takes


@dataclass(frozen=True)
class View:
    """One image, whole or in tiles, and the values of its patches in some layers (or maps).

    `pixels` is empty where a record kept none; `maps` are the numbers of the layers (or maps);
    `sinks` says which patches are attention sinks, where that is known.
    """

    title: str
    pixels: UInt8[np.ndarray, "height width channel"]
    boxes: Float[np.ndarray, "key 4"]
    values: Float[np.ndarray, "map key"]
    maps: Sequence[int] = ()
    sinks: Bool[np.ndarray, "map key"] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; 1 and 1 without pixels."""
        height, width = self.pixels.shape[:2] if self.pixels.size else (1, 1)
        return width, height

    @property
    def aspect(self) -> float:
        """Height ÷ width of its panel, at most 2."""
        width, height = self.size
        return min(height / width, 2)

    def without_sinks(self) -> "View":
        """The same with NaN as the value of attention sinks."""
        if self.sinks is None:
            return self
        return replace(self, values=np.where(self.sinks, np.nan, self.values))


def kept_images(root: xr.Dataset, sample: int) -> list[int]:
    """The numbers of a sample's images of which the record has a small copy."""
    if "images" not in root:
        return []
    count = int(root["image_size"].values[sample].any(-1).sum())
    if "image_number" in root and (root["image_number"].values[sample] >= 0).any():
        return root["image_number"].values[sample][:count].tolist()
    return list(range(count))


def small_image(
    root: xr.Dataset, sample: int, image: int
) -> UInt8[np.ndarray, "height width channel"]:
    """The record's small copy of an image, or of a frame; empty where it has none."""
    kept = kept_images(root, sample)
    if image not in kept:
        return np.empty((0, 0, 3), np.uint8)
    place = kept.index(image)
    height, width = root["image_size"].values[sample, place]
    return root["images"].values[sample, place, :height, :width]


def show_image(axis: Axes, pixels: UInt8[np.ndarray, "height width channel"], grey: float = 0):
    """Draw an image in its own pixel coordinates; nothing where none was kept.

    grey: 0 is in colour; otherwise black becomes this far from white, so that colours stand out.
    """
    height = 1
    width = 1
    if pixels.size:
        height, width = pixels.shape[:2]
        shown = pixels
        if grey:
            brightness = pixels.mean(-1) / 255
            shown = 1 - (1 - brightness) * grey
        axis.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")


def corners(
    boxes: Float[np.ndarray, "patch edge=4"], size: tuple[int, int]
) -> list[Float[np.ndarray, "corner=4 xy=2"]]:
    """The corners of each box in pixels of an image of this width and height."""
    left, top, right, bottom = np.clip(boxes, 0, 1).T
    around = np.stack([left, top, right, top, right, bottom, left, bottom], -1)
    return [*(around.reshape(-1, 4, 2) * size)]


def middles(
    boxes: Float[np.ndarray, "patch edge=4"], size: tuple[int, int]
) -> Float[np.ndarray, "patch xy=2"]:
    """The middle of each box in pixels of an image of this width and height."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2 * size


def draw_patches(
    axis: Axes,
    view: View,
    values: Float[np.ndarray, " key"],
    norm: Normalize,
    colours: str = "inferno",
    outlines: bool = True,
) -> PolyCollection:
    """The patches of a view in exactly the colours of their values, as on the colour bar, with the
    outlines of the image on top of them.

    Patches outside the image, and those whose value is NaN, are left out: the image is seen there,
    in grey.
    """
    show_image(axis, view.pixels, grey=0.5)
    left, top, right, bottom = np.clip(view.boxes, 0, 1).T
    drawn = (right > left) & (bottom > top) & ~np.isnan(values)
    polygons = corners(view.boxes[drawn], view.size)
    patches = PolyCollection(polygons, cmap=colours, norm=norm, linewidths=0)
    patches.set_array(values[drawn])
    axis.add_collection(patches, autolim=False)
    if outlines:
        _draw_outlines(axis, view.pixels)
    return patches


def _draw_outlines(axis: Axes, pixels: UInt8[np.ndarray, "height width channel"]) -> None:
    """The border between the bright and the dark part of an image, if it has two such parts."""
    if not pixels.size:
        return
    step = max(1, max(pixels.shape[:2]) // _OUTLINE)
    rows = pixels.shape[0] // step
    columns = pixels.shape[1] // step
    if min(rows, columns) < 4:
        return
    whole_blocks = pixels[: rows * step, : columns * step].mean(-1)
    grey = whole_blocks.reshape(rows, step, columns, step).mean((1, 3))
    level = _between_two_parts(np.sort(grey, axis=None))
    if level is not None:
        x = (np.arange(columns) + 0.5) * step
        y = (np.arange(rows) + 0.5) * step
        axis.contour(x, y, grey, [level], colors="0.6", linewidths=0.6)


def _between_two_parts(values: Float[np.ndarray, " value"]) -> float | None:
    """The level that separates sorted values into the two most different parts (Otsu's), or None
    where this explains little of their variance, as in noise.
    """
    count = np.arange(1, len(values))
    share = count / len(values)
    total = np.cumsum(values)
    mean_below = total[:-1] / count
    mean_above = (total[-1] - total[:-1]) / count[::-1]
    # the variance between the two parts, for every place at which they could be separated
    between = share * (1 - share) * (mean_above - mean_below) ** 2
    cut = int(between.argmax())
    if values.var() < 1 or between[cut] < _SEPARATED * values.var():
        return None
    return float(values[cut] + values[cut + 1]) / 2


def outlined(width: float) -> list[withStroke]:
    """A black outline that keeps marks and words legible on any colour."""
    return [withStroke(linewidth=width, foreground="black")]


LOG_BAR: dict[str, Any] = {  # of the colour bar of such a scale: plain numbers, not too many
    "extend": "min",
    "ticks": LogLocator(subs=(1, 2, 5)),
    "format": "{x:g}",
}


def bar_ticks(norm: LogNorm, inches: float) -> Locator:
    """The ticks of a logarithmic colour bar so many inches long, whose labels must not touch."""
    assert norm.vmin is not None and norm.vmax is not None  # those of `log_scale`
    most = max(int(inches / _TICK), 2)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = LogLocator(subs=digits).tick_values(norm.vmin, norm.vmax)
        shown = [tick for tick in ticks if norm.vmin <= tick <= norm.vmax]
        if 2 <= len(shown) <= most:
            return FixedLocator(shown)
    return MaxNLocator(most)


def log_scale(views: Sequence[View], floor: float | None, called: str) -> LogNorm:
    """One scale for all views: from `floor` to the highest value.

    By default the floor is what 99 % of the values reach, rounded down to one digit, and between a
    half and a thousandth of the highest value. What is below looks like the floor.
    """
    values = np.concatenate([view.values.ravel() for view in views])
    top = float(np.nanmax(values)) or 1.0
    low = _default_floor(values, top) if floor is None else floor
    if not 0 < low < top:
        raise ProbeError(
            called, expected=f"a floor between 0 and the highest value ({top:.2g})", got=f"{low:g}"
        )
    return LogNorm(low, top, clip=True)


def _default_floor(values: Float[np.ndarray, " value"], top: float) -> float:
    positive = values[values > 0]
    reached = float(np.quantile(positive, 0.01)) if positive.size else top
    lowest = top * 10.0**-_DECADES
    reached = min(max(reached, lowest), top / 2)
    digit = 10.0 ** np.floor(np.log10(reached))
    return float(np.floor(reached / digit) * digit)


def preprocessing(records: Mapping[str, xr.DataTree]) -> list[str]:
    """How images were fitted to the encoder, and whether they were kept, for a caption."""
    aspects = [str(record.attrs.get("aspect", "unknown")) for record in records.values()]
    notes = [_FITTED.get(aspect, f"preprocessing: {aspect}") for aspect in aspects]
    if not all("images" in record.data_vars for record in records.values()):
        notes.append("a record holds no pixels: its patches are drawn on a blank square")
    return notes
