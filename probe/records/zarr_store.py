"""Datasets as the bytes of a zarr store (v3) and back, as they were: zarr keeps neither the order
of variables nor Python's strings.

    chunks = chunks_of({"/": dataset})       # {"zarr.json": b"...", ...}
    from_zarr(store_of(chunks))["/"]         # the dataset
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from probe.errors import ProbeError
from probe.records.concat import with_text
from probe.records.schema import Variable

OLD_NAMES = {  # of variables, in files that were written before they were renamed
    "picture": "images",
    "picture_size": "image_size",
    "picture_sha256": "image_sha256",
}


def chunks_of(datasets: Mapping[str, xr.Dataset]) -> dict[str, bytes]:
    """The zarr store as bytes. Not into a zip directly: zarr writes its metadata twice, a zip keeps
    both.
    """
    chunks: dict[str, Any] = {}
    store = MemoryStore(chunks)
    try:
        xr.DataTree.from_dict(datasets).to_zarr(store, zarr_format=3, consolidated=False)
    except (TypeError, ValueError) as error:  # a user's variable, which xarray names in a note
        note = next(iter(getattr(error, "__notes__", [])), "").split(" with value")[0]
        raise ProbeError(
            "record.save", expected="numbers or strings", got=f"{error}", fix=note
        ) from None
    return {key: chunk.to_bytes() for key, chunk in sorted(chunks.items())}


def store_of(chunks: Mapping[str, bytes]) -> MemoryStore:
    buffer = default_buffer_prototype().buffer
    return MemoryStore({key: buffer.from_bytes(chunk) for key, chunk in chunks.items()})


def left_on_disk(store: Path) -> xr.DataTree:
    """A zarr folder of a tree, of which only the coordinates are in memory."""
    tree = tree_in(store, cache=False)
    nodes = {}
    for node in tree.subtree:
        opened = node.to_dataset(inherit=False)
        labels = with_text(opened[[]].load().assign_coords(opened.coords).load())
        nodes[node.path] = opened.assign_coords(labels.coords)
    return xr.DataTree.from_dict(nodes)


def tree_in(store: MemoryStore | Path, cache: bool = True) -> xr.DataTree:
    raw: dict[str, Any] = {"chunks": None, "decode_times": False, "decode_timedelta": False}
    raw["cache"] = cache
    raw["consolidated"] = isinstance(store, Path)  # the merged samples of a run
    return xr.open_datatree(store, engine="zarr", **raw)  # pyright: ignore


def from_zarr(store: MemoryStore | Path) -> dict[str, xr.Dataset]:
    """The datasets of a zarr store by path, in memory."""
    return {node.path: restored(node, {}) for node in tree_in(store).load().subtree}


def restored(node: xr.DataTree, schema: Mapping[str, Variable]) -> xr.Dataset:
    """As it was saved: zarr does not keep the order of variables, and knows neither Python's
    strings nor the dtype of empty arrays.
    """
    dataset = with_text(node.to_dataset(inherit=False))
    dataset = dataset.rename({old: new for old, new in OLD_NAMES.items() if old in dataset})
    typed = {
        name: variable.astype(schema[str(name)].dtype)
        for name, variable in dataset.variables.items()
        if name in schema
    }
    dataset = dataset.assign(typed)
    known = [name for name in schema if name in dataset.data_vars]
    return dataset[known + sorted(map(str, dataset.data_vars.keys() - set(known)))]
