"""The chunks of a part as arrays, without opening a zarr store: a run has ten thousand parts.

    nodes = decoded(read_archive(path))             # {"/": Node(...), "/llm": Node(...)}

Parts are zarr as `io.write_part` writes it: every array is one chunk, compressed with zstd.
Anything else raises UndecodableError, and the caller reads it with zarr. Arrays that do not belong
to samples are mostly equal in all parts: their bytes are decoded once, to one read-only array.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numcodecs import VLenUTF8, Zstd

from probe.records.archive import ROOT_METADATA
from probe.records.concat import SAMPLE, Node

BYTES = [["bytes", "zstd"], ["bytes"]]
TEXT = [["vlen-utf8", "zstd"], ["vlen-utf8"]]
OF_ENCODING = ("_FillValue", "coordinates")  # attributes that xarray adds
KEPT = 1 << 12  # arrays that are the same in several parts


class UndecodableError(ValueError):
    """A store that this decoder does not know."""


class Array(NamedTuple):
    """What the metadata of an array says."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Any
    packed: bool
    attrs: dict[str, Any]
    coordinates: tuple[str, ...]


def decoded(chunks: Mapping[str, bytes]) -> dict[str, Node]:
    """The nodes of a part by path. Raises UndecodableError for a store of another layout."""
    nodes: dict[str, Node] = {}
    arrays: dict[str, dict[str, xr.Variable]] = {}
    coordinates: dict[str, set[str]] = {}
    for key, content in chunks.items():
        if key.rsplit("/", 1)[-1] != ROOT_METADATA:
            continue
        place = key.removesuffix(ROOT_METADATA).strip("/")
        array = _metadata(content)
        if isinstance(array, Array):
            group, _, name = place.rpartition("/")
            chunk = chunks.get("/".join([place, "c", *["0"] * len(array.shape)]))
            values = (_values if SAMPLE in array.dims else _shared_values)(content, chunk)
            arrays.setdefault(group, {})[name] = xr.Variable(
                array.dims, values, dict(array.attrs), fastpath=True
            )
            coordinates.setdefault(group, set()).update(array.coordinates)
        else:
            nodes[place] = Node({}, set(), dict(array))
    for group, variables in arrays.items():
        if group not in nodes:
            raise UndecodableError(f"an array outside any group: {group!r}")
        from_attrs = set(nodes[group].attrs.pop("coordinates", "").split())
        own = {name for name, variable in variables.items() if variable.dims == (name,)}
        known = (coordinates[group] | from_attrs | own) & set(variables)
        nodes[group] = Node(variables, known, nodes[group].attrs)
    return {f"/{place}": node for place, node in nodes.items()}


@lru_cache(maxsize=KEPT)
def _metadata(content: bytes) -> Array | dict[str, Any]:
    """Of an array what is needed to decode it, of a group its attributes."""
    node = json.loads(content)
    if node.get("node_type") == "group":
        return node.get("attributes", {})
    codecs = [codec["name"] for codec in node["codecs"]]
    text = node["data_type"] == "string"
    if codecs not in (TEXT if text else BYTES):
        raise UndecodableError(f"codecs {codecs}")
    endian = node["codecs"][0].get("configuration", {}).get("endian", "little")
    shape = tuple(node["shape"])
    chunk = tuple(node["chunk_grid"]["configuration"]["chunk_shape"])
    if endian != "little" or (chunk != shape and math.prod(shape)):
        raise UndecodableError(f"{endian}-endian chunks {chunk} of {shape}")
    dtype = np.dtype(object) if text else np.dtype(node["data_type"]).newbyteorder("<")
    attributes = node.get("attributes", {})
    coordinates = tuple(attributes.get("coordinates", "").split())
    attrs = {name: value for name, value in attributes.items() if name not in OF_ENCODING}
    dims = tuple(node.get("dimension_names") or ())
    if len(dims) != len(shape):
        raise UndecodableError(f"dimensions {dims} of {shape}")
    packed = codecs[-1] == "zstd"
    return Array(dims, shape, dtype, node["fill_value"], packed, attrs, coordinates)


def _values(metadata: bytes, chunk: bytes | None) -> np.ndarray:
    array = _metadata(metadata)
    assert isinstance(array, Array)
    if chunk is None or not math.prod(array.shape):  # zarr leaves out chunks of the fill value
        values = np.full(array.shape, "" if array.dtype == object else array.fill, array.dtype)
    else:
        content = Zstd().decode(chunk) if array.packed else chunk
        if array.dtype == object:
            values = VLenUTF8().decode(content).reshape(array.shape)
        else:
            values = np.frombuffer(content, array.dtype).reshape(array.shape)
    values.flags.writeable = False
    return values


_shared_values = lru_cache(maxsize=KEPT)(_values)
