"""The colours of a page: 256 for values from 0 up, and 256 for values of both signs.

Both are dark where nothing is, because they are laid over a picture as light.
"""

from typing import Any

import matplotlib
import numpy as np
from jaxtyping import UInt8

from probe.viewer.typed_arrays import ArrayStore

COUNT = 256
RISING = "inferno"  # as in the figures of `probe.plots`
# Violet is below zero, orange above, as in the maps of attributions: (level, red, green, blue).
SIGNED = (
    (0, 216, 196, 255),
    (60, 118, 74, 226),
    (127, 0, 0, 0),
    (195, 228, 112, 12),
    (255, 255, 226, 150),
)


def rising() -> UInt8[np.ndarray, "colour=256 rgb=3"]:
    colours = matplotlib.colormaps[RISING](np.arange(COUNT))[:, :3]
    return (255 * colours).round().astype(np.uint8)


def signed() -> UInt8[np.ndarray, "colour=256 rgb=3"]:
    places, *channels = np.array(SIGNED).T
    mixed = [np.interp(np.arange(COUNT), places, channel).round() for channel in channels]
    return np.stack(mixed, -1).astype(np.uint8)


def colour_tables(store: ArrayStore) -> dict[str, Any]:
    """The references of both tables."""
    return {"rising": store.add(rising()), "signed": store.add(signed())}
