"""The views of a sample that a figure draws: each image as a whole, and its tiles together.

    found = views(record, measured, 0, measured["received"].values[0, :, 0])

Of a long video some frames are taken, evenly spread.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from probe.errors import ProbeError
from probe.plots.patches import View, kept_images, small_image

_CALLED = "plots.heatmaps"
_FRAMES = 6  # of a longer video that are drawn, unless one is chosen


def views(
    record: xr.DataTree,
    measured: xr.Dataset,
    sample: int,
    values: Float[np.ndarray, "map key"],
    image: int | None = None,
    tile: int | None = None,
    maps: Sequence[int] | None = None,
    label: str = "",
) -> list[View]:
    """The views of a sample: each image as a whole, and its tiles together where it has any.

    values: of each patch, in several maps: layers, of which `maps` chooses some, or queries.
    `image` and `tile` choose one; `label` is the beginning of each title. Raises ProbeError where
    nothing is left.
    """
    keys = measured.isel(sample=sample)
    sinks = None
    if maps is None:
        maps = range(len(values))
    elif "key_sink" in keys:
        sinks = keys["key_sink"].values[maps] > 0
    values = values[maps]
    boxes = keys["key_box"].values
    owner = keys["key_image"].values
    tiles = keys["key_tile"].values
    placed = ~np.isnan(boxes).any(-1) & ~np.isnan(values).all(0)
    parts = {"": tiles == 0, "tiles": tiles > 0}
    if tile is not None:
        parts = {f"tile {tile}": tiles == tile}
    images = np.unique(owner[placed]).tolist()
    root = record.to_dataset()
    drawn = _evenly(images, keys, kept_images(root, sample)) if image is None else [image]
    found = []
    for number in drawn:
        pixels = small_image(root, sample, number)
        name = image_title(keys, number) if len(images) > 1 else ""
        for part, inside in parts.items():
            mask = placed & (owner == number) & inside
            if mask.any():
                title = ", ".join(filter(None, [label, name, part]))
                marked = None if sinks is None else sinks[:, mask]
                found.append(View(title, pixels, boxes[mask], values[:, mask], maps, marked))
    if not found and np.isnan(boxes).all():
        raise _without_places(record, sample, str(keys["sample"].item()))
    if not found:
        raise ProbeError(
            _CALLED,
            expected="vision tokens that were attended to",
            got=f"none in sample {keys['sample'].item()!r}, image {image}, tile {tile}",
        )
    return found


def _without_places(record: xr.DataTree, sample: int, name: str) -> ProbeError:
    """The error for tokens that each stand for the whole image, and for words that read it by
    cross-attention: it names the stacks whose keys do have places.
    """
    with_places = [
        stack
        for stack, measured in record.children.items()
        if "key_box" in measured and measured["key_box"].isel(sample=sample).notnull().any()
    ]
    return ProbeError(
        _CALLED,
        expected="vision tokens that stand for a place in the image",
        got=f"none in sample {name!r}",
        fix=" or ".join(f"draw stack={stack!r}" for stack in with_places),
    )


def _evenly(images: list[int], keys: xr.Dataset, kept: list[int]) -> list[int]:
    """All images; of a long video some frames, evenly chosen of those that the record kept."""
    if "key_frame" not in keys or len(images) <= _FRAMES:
        return images
    images = [image for image in images if image in kept] or images
    places = np.linspace(0, len(images) - 1, _FRAMES).round().astype(int)
    return [images[place] for place in places]


def image_title(keys: xr.Dataset, image: int) -> str:
    """ "image 2", or "frame 3, 2.0 s" of a video."""
    if "key_frame" in keys:
        own = (keys["key_image"].values == image) & (keys["key_frame"].values >= 0)
        if own.any():
            frame = keys["key_frame"].values[own][0]
            time = keys["key_time"].values[own][0]
            return f"frame {frame + 1}, {time:.1f} s"
    return f"image {image + 1}"
