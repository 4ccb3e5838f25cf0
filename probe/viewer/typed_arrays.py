"""Numbers on their way into a page: typed arrays, one after the other, compressed.

    store = ArrayStore()
    header = {"boxes": store.add(boxes), "received": store.add_levels(received)}
    store.packed()                       # gzip: what `static/data.js` reads back by the header

A map of attention is kept as levels, one byte a patch: 0 to 254 are evenly spread from 0 to the
largest value of its row, which is kept as float32; 255 is NaN. So a value is exact to 1/508 of the
largest one of its map. Of long rows only the largest values can be kept (`top`), with their places.
"""

import gzip
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

LEVELS = 254  # of the largest value in a row
MISSING = 255  # the level of NaN
ALIGNED = 4  # bytes: where an array of float32 may begin in JavaScript
NAMES = {"uint8": "u1", "uint16": "u2", "int32": "i4", "float32": "f4"}


class ArrayStore:
    """Arrays one after the other; each is known by a reference: its type, shape and place."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self.size = 0

    def add(self, values: Shaped[np.ndarray, "..."]) -> dict[str, Any]:
        """The reference of an array; other types than those of `NAMES` become float32."""
        array = np.ascontiguousarray(values)
        if array.dtype.name not in NAMES:
            array = array.astype(np.float32)
        reference = {
            "array": NAMES[array.dtype.name],
            "shape": list(array.shape),
            "offset": self.size,
        }
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        padding = -len(content) % ALIGNED
        self._chunks.append(content + bytes(padding))
        self.size += len(content) + padding
        return reference

    def add_levels(
        self, values: Float[np.ndarray, "*axes key"], top: int | None = None
    ) -> dict[str, Any]:
        """The references of maps as levels; of each row only the `top` largest values, if given."""
        if top is None or top >= values.shape[-1]:
            levels, peak = quantised(values)
            return {"levels": self.add(levels), "peak": self.add(peak)}
        places = largest_places(values, top)
        levels, peak = quantised(np.take_along_axis(values, places, -1))
        return {
            "levels": self.add(levels),
            "peak": self.add(peak),
            "places": self.add(places.astype(np.uint16)),
            "keys": values.shape[-1],
        }

    def packed(self) -> bytes:
        """All arrays, compressed by gzip; equal arrays give equal bytes."""
        return gzip.compress(b"".join(self._chunks), 6, mtime=0)


def quantised(
    values: Float[np.ndarray, "*rows row key"],
) -> tuple[UInt8[np.ndarray, "*rows row key"], Float[np.ndarray, "*rows row"]]:
    """Levels, and the largest value of each row (0 where there is none).

    >>> levels, peak = quantised(np.array([[0.0, 0.25, 0.5, np.nan]]))
    >>> levels.tolist(), peak.tolist()
    ([[0, 127, 254, 255]], [0.5])
    """
    peak = np.nan_to_num(values).max(-1, initial=0).astype(np.float32)
    part = np.nan_to_num(values) / np.where(peak > 0, peak, 1)[..., None]
    levels = np.round(LEVELS * part).astype(np.uint8)
    return np.where(np.isnan(values), np.uint8(MISSING), levels), peak


def largest_places(values: Float[np.ndarray, "*axes key"], top: int) -> np.ndarray:
    """Where the `top` largest values of each row are, in rising order; NaN comes last.

    >>> largest_places(np.array([0.1, 0.5, np.nan, 0.3]), 2).tolist()
    [1, 3]
    """
    smallest_last = np.where(np.isnan(values), np.inf, -values)
    return np.sort(np.argpartition(smallest_last, top - 1, -1)[..., :top], -1)
