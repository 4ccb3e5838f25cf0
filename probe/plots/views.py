"""Which patches of which image a heat map shows, and their values: everything about it but the
drawing.

A view is one image of one record, seen whole (the base view) or in its tiles. Newline tokens have
no place in the image, so they are in no view.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, UInt8

from probe.errors import ProbeError

_CALLED = "plots.heatmaps"


@dataclass(frozen=True)
class View:
    """A row of panels. `boxes` are left, top, right, bottom as fractions of the image, which may be
    empty; `sinks` says which keys are attention sinks, where that is known."""

    title: str
    pixels: UInt8[np.ndarray, "height width channel"]
    boxes: Float[np.ndarray, "key 4"]
    values: Float[np.ndarray, "layer key"]
    sinks: Bool[np.ndarray, "layer key"] | None = None


def views(
    record: xr.DataTree,
    measured: xr.Dataset,
    sample: int,
    values: Float[np.ndarray, "layer key"],
    image: int | None = None,
    tile: int | None = None,
    sinks: Bool[np.ndarray, "layer key"] | None = None,
) -> list[View]:
    """The views of a sample, or those of one `image` or `tile`; an image without tiles has one."""
    keys = measured.isel(sample=sample)
    boxes, owner, tiles = (keys[name].values for name in ("key_box", "key_image", "key_tile"))
    placed = ~np.isnan(boxes).any(-1) & ~np.isnan(values).all(0)
    numbers = np.unique(owner[placed]).tolist()
    found = []
    for number in numbers:
        parts = (
            {"": tiles == 0, "tiles": tiles > 0}
            if tile is None
            else {f"tile {tile}": tiles == tile}
        )
        for part, inside in parts.items():
            mask = placed & (owner == number) & inside
            title = ", ".join(
                text for text in (f"image {number + 1}" if len(numbers) > 1 else "", part) if text
            )
            if mask.any() and image in (None, number):
                pixels, marked = (
                    _pixels(record.to_dataset(), sample, number),
                    None if sinks is None else sinks[:, mask],
                )
                found.append(View(title, pixels, boxes[mask], values[:, mask], marked))
    if not found:
        got = f"none in sample {measured['sample'].values[sample]!r}, image {image}, tile {tile}"
        raise ProbeError(_CALLED, expected="vision tokens that were attended to", got=got)
    return found


def _pixels(root: xr.Dataset, sample: int, image: int) -> UInt8[np.ndarray, "height width channel"]:
    if "images" not in root or image >= root.sizes["image"]:
        return np.empty((0, 0, 3), np.uint8)
    height, width = root["image_size"].values[sample, image]
    return root["images"].values[sample, image, :height, :width]


def has_values(measured: xr.Dataset, sample: int | str, query_type: str) -> bool:
    """Whether there is something to draw for this sample and these queries."""
    if "received" not in measured or "key_box" not in measured:
        return False
    here = measured.isel(sample=index_of(measured, sample))
    return bool(
        (
            here["received"].sel(query_type=query_type).notnull()
            & here["key_box"].notnull().any("edge")
        ).any()
    )


def index_of(measured: xr.Dataset, sample: int | str) -> int:
    """The row of a sample that is given by its index or its id."""
    ids = measured["sample"].values.tolist()
    if isinstance(sample, str) and sample in ids:
        return ids.index(sample)
    if isinstance(sample, str) or not -len(ids) <= sample < len(ids):
        some = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise ProbeError(_CALLED, expected=f"one of {len(ids)} samples ({some})", got=repr(sample))
    return sample


def layers_of(measured: xr.Dataset, layers: int | Sequence[int] | None) -> list[int]:
    """The layers asked for (one or several), or nine of them evenly spread from the first to the
    last.
    """
    count = measured.sizes["layer"]
    if layers is None:
        return np.unique(np.linspace(0, count - 1, min(count, 9)).round().astype(int)).tolist()
    asked = list(layers) if isinstance(layers, Iterable) else [layers]
    if not asked or not all(isinstance(layer, Integral) and 0 <= layer < count for layer in asked):
        raise ProbeError(_CALLED, expected=f"layers from 0 to {count - 1}", got=str(asked))
    return [int(layer) for layer in asked]


def sinks_of(measured: xr.Dataset, sample: int) -> Bool[np.ndarray, "layer key"] | None:
    """Which vision keys are attention sinks in each layer; None where the record does not say."""
    return measured["key_sink"].values[sample] > 0 if "key_sink" in measured else None


def attention_on(
    measured: xr.Dataset, sample: int, query_type: str, token: int | None
) -> Float[np.ndarray, "layer key"]:
    """What each vision key gets: from the queries of a type on average, or from one token of
    `maps`.
    """
    name = "received" if token is None else "maps"
    if name not in measured:
        fix = "measure a sample with an image" if token is None else "measure with maps"
        raise ProbeError(_CALLED, expected=f"a record with {name!r}", got="one without", fix=fix)
    values = measured[name].isel(sample=sample)
    if token is None:
        return values.sel(query_type=query_type).values
    if not 0 <= token < values.sizes["token"]:
        raise ProbeError(
            _CALLED, expected=f"a token from 0 to {values.sizes['token'] - 1}", got=str(token)
        )
    values = values.isel(token=token)
    return (values.mean("head") if "head" in values.dims else values).values
