"""Patches over an image: what all figures with an image draw.

Boxes are left, top, right, bottom as fractions of the original image, so it does not matter how the
image was fitted to the encoder: patches on the bars of a padded image lie outside and are cut off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patheffects import withStroke

from probe.errors import ProbeError

_FITTED = {
    "crop": "preprocessing: crop (the model sees the square in the middle only)",
    "pad": "preprocessing: pad (to a square; patches on the bars lie outside the image)",
    "anyres": "preprocessing: any-resolution (the whole image, and tiles at a higher resolution)",
}
_DECADES = 3  # of a logarithmic scale at most, unless its floor is given


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


def show_image(axis: Axes, pixels: UInt8[np.ndarray, "height width channel"], grey: float = 0):
    """Draw an image in its own pixel coordinates; nothing where none was kept.

    grey: 0 is in colour; otherwise black becomes this far from white, so that colours stand out.
    """
    height, width = pixels.shape[:2] if pixels.size else (1, 1)
    if pixels.size:
        shown = 1 - (1 - pixels.mean(-1) / 255) * grey if grey else pixels
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
) -> PolyCollection:
    """The patches of a view in the colours of their values, over the image in grey.

    Patches outside the image, and those whose value is NaN, are left out.
    """
    show_image(axis, view.pixels, grey=0.85)
    left, top, right, bottom = np.clip(view.boxes, 0, 1).T
    drawn = (right > left) & (bottom > top) & ~np.isnan(values)
    polygons = corners(view.boxes[drawn], view.size)
    patches = PolyCollection(polygons, cmap=colours, norm=norm, alpha=0.7, linewidths=0)
    patches.set_array(values[drawn])
    axis.add_collection(patches, autolim=False)
    return patches


def outlined(width: float) -> list[withStroke]:
    """A black outline that keeps marks and words legible on any colour."""
    return [withStroke(linewidth=width, foreground="black")]


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
    reached = min(max(reached, top * 10.0**-_DECADES), top / 2)
    digit = 10.0 ** np.floor(np.log10(reached))
    return float(np.floor(reached / digit) * digit)


def preprocessing(records: Mapping[str, xr.DataTree]) -> list[str]:
    """How images were fitted to the encoder, and whether they were kept, for a caption."""
    aspects = [str(record.attrs.get("aspect", "unknown")) for record in records.values()]
    notes = [_FITTED.get(aspect, f"preprocessing: {aspect}") for aspect in aspects]
    if not all("images" in record.data_vars for record in records.values()):
        notes.append("a record holds no pixels: its patches are drawn on a blank square")
    return notes
