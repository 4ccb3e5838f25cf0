"""One xarray object, one file: what a run is made of.

A part is an `xarray.Dataset` or `DataTree` whose `sample` coordinate holds ids, as zarr v3 in a zip
file. It is written under another name, flushed to the disk and renamed, so a part is whole or not
there; it never changes after. Inside, both kinds are the same thing, a dataset for each node:

    {"/": questions and answers, "/llm": mass(sample, layer, head, ...), "/vision": ...}

Ragged dimensions (tokens, keys) may differ between parts: `join` fills up with NaN, -1, False or
"".
"""

import os
import secrets
import time
import zipfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from zarr.storage import MemoryStore, ZipStore

from probe.errors import ProbeError

SAMPLE = "sample"
Labelled = xr.Dataset | xr.DataTree
Nodes = dict[str, xr.Dataset]  # path -> dataset; the root "/" has the ids
KIND = "probe_kind"  # root attribute in the file: which of the two it was


def ids_of(data: Labelled) -> list[str]:
    """The sample ids. Raises ProbeError when there are none or one is there twice."""
    if SAMPLE not in data.coords:
        raise ProbeError(
            "run",
            expected=f"a coordinate {SAMPLE!r} with ids",
            got=f"only {', '.join(map(str, data.coords))}",
        )
    ids = [str(name) for name in np.atleast_1d(data.coords[SAMPLE].values)]
    if len(set(ids)) < len(ids):
        raise ProbeError(
            "run",
            expected="every id once",
            got=f"{next(i for i in ids if ids.count(i) > 1)!r} twice",
        )
    return ids


def write_part(data: Labelled, folder: Path, worker: str = "0") -> Path:
    """Writes one part into the folder, atomically, under a name that no other worker can choose."""
    ids_of(data)
    name = f"part-{worker}-{time.time_ns()}-{secrets.token_hex(4)}.zarr.zip"
    temporary = folder / f"{name}.tmp"
    try:
        _write_zip(to_nodes(data), temporary)
        os.replace(temporary, folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(folder)
    return folder / name


def read_part(path: Path) -> Labelled:
    """The whole part, in memory."""
    with _opened(path) as store:
        return from_nodes(_nodes_in(store)).load()


def read_ids(path: Path) -> list[str]:
    """The ids in a part, without reading anything else. Raises ProbeError when the file is
    damaged.
    """
    with _opened(path) as store:
        return [str(name) for name in np.asarray(zarr.open_group(store, mode="r")[SAMPLE][:])]  # pyright: ignore


def read_skeleton(path: Path) -> Labelled:
    """The part without its samples: what is the same for all of them, and no length along ragged
    dimensions.
    """
    with _opened(path) as store:
        return select(from_nodes(_nodes_in(store)), slice(0, 0)).load()


def select(data: Labelled, rows: slice | Sequence[int]) -> Labelled:
    """Some samples, by position."""
    nodes = to_nodes(data)
    return from_nodes(
        {path: ds.isel({SAMPLE: rows}, missing_dims="ignore") for path, ds in nodes.items()}
    )


def to_nodes(data: Labelled) -> Nodes:
    """The datasets of an object by path, strings as objects, the root marked with what the object
    was.
    """
    if isinstance(data, xr.Dataset):
        return {"/": _plain(data).assign_attrs({KIND: "dataset"})}
    nodes = {node.path: _plain(node.to_dataset(inherit=False)) for node in data.subtree}
    return nodes | {"/": nodes["/"].assign_attrs({KIND: "tree"})}


def from_nodes(nodes: Mapping[str, xr.Dataset]) -> Labelled:
    """The inverse of `to_nodes`."""
    plain = {path: _plain(dataset) for path, dataset in nodes.items()}
    kind = plain["/"].attrs.pop(KIND, "tree")
    return plain["/"] if kind == "dataset" else xr.DataTree.from_dict(plain)


def join(parts: Sequence[Labelled]) -> Labelled:
    """Parts one after the other along `sample`; ragged dimensions are filled up to the longest.

    Variables without samples must agree where both have values. Raises ProbeError when parts differ
    in their nodes or variables.
    """
    nodes = [to_nodes(part) for part in parts]
    for other in nodes[1:]:
        if other.keys() != nodes[0].keys():
            raise ProbeError(
                "run", expected=f"parts with the nodes {sorted(nodes[0])}", got=str(sorted(other))
            )
    return from_nodes({path: _join_node(path, [each[path] for each in nodes]) for path in nodes[0]})


def flush_folder(folder: Path) -> None:
    """Makes a rename last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _join_node(path: str, datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    first = datasets[0]
    for other in datasets[1:]:
        if set(other.variables) != set(first.variables):
            differing = ", ".join(
                map(str, sorted(set(other.variables) ^ set(first.variables), key=str))
            )
            raise ProbeError(
                "run",
                expected="the same variables in all parts",
                got=f"{differing} only in some ({path})",
            )
    names = {str(name) for dataset in datasets for name in dataset.sizes} - {SAMPLE}
    full = {name: max(dataset.sizes.get(name, 0) for dataset in datasets) for name in names}
    joined = {}
    for name, variable in first.variables.items():
        padded = [_pad(dataset.variables[name], full) for dataset in datasets]
        joined[name] = (
            xr.Variable.concat(padded, SAMPLE) if SAMPLE in variable.dims else _agreed(name, padded)
        )
    return xr.Dataset(
        {name: value for name, value in joined.items() if name not in first.coords},
        coords={name: value for name, value in joined.items() if name in first.coords},
        attrs=first.attrs,
    )


def _pad(variable: xr.Variable, full: Mapping[str, int]) -> xr.Variable:
    """The variable with its ragged dimensions at full length, as an ordinary (not an index)
    variable.
    """
    shape = tuple(full.get(str(name), variable.sizes[name]) for name in variable.dims)
    if shape == variable.shape:
        return variable.to_base_variable()
    values = np.full(shape, filler(variable.dtype), dtype=variable.dtype)
    values[tuple(slice(size) for size in variable.shape)] = variable.values
    return xr.Variable(variable.dims, values, variable.attrs)


def filler(dtype: np.dtype) -> float | int | bool | str:
    """What stands where a shorter sample has nothing: NaN, -1 (0 for pixels), False, or no text."""
    return {"f": np.nan, "i": -1, "u": 0, "b": False}.get(dtype.kind, "")


def _agreed(name: Hashable, padded: Sequence[xr.Variable]) -> xr.Variable:
    """The one with most values, once all others are seen to agree with it wherever both have
    one.
    """
    empty = filler(padded[0].dtype)

    def known(variable: xr.Variable) -> np.ndarray:
        return variable.values == variable.values if empty is np.nan else variable.values != empty

    best = max(padded, key=lambda variable: int(known(variable).sum()))
    for other in padded:
        if (known(other) & known(best) & (other.values != best.values)).any():
            raise ProbeError(
                "run", expected=f"{name!r} alike in all parts", got="parts that differ in it"
            )
    return best


def _nodes_in(store: ZipStore) -> Nodes:
    tree = xr.open_datatree(store, engine="zarr", chunks=None, consolidated=False)  # pyright: ignore
    return {node.path: node.to_dataset(inherit=False) for node in tree.subtree}


def _plain(dataset: xr.Dataset) -> xr.Dataset:
    """Strings as objects, and no encoding left over from the file they came from."""
    dataset = dataset.drop_encoding()
    text = {
        name: _text(each) for name, each in dataset.variables.items() if each.dtype.kind in "UTO"
    }
    return dataset.assign(
        {name: each for name, each in text.items() if name not in dataset.coords}
    ).assign_coords({name: each for name, each in text.items() if name in dataset.coords})


def _text(variable: xr.Variable) -> xr.Variable:
    values = np.array([str(each) for each in variable.values.flat], dtype=object).reshape(
        variable.shape
    )
    return xr.Variable(variable.dims, values, variable.attrs)


def _write_zip(nodes: Nodes, path: Path) -> None:
    """Through memory: a zip can't overwrite, and zarr writes the description of an array twice."""
    content: dict = {}
    store = MemoryStore(content)
    for node, dataset in nodes.items():
        dataset.to_zarr(store, group=node, mode="a", zarr_format=3, consolidated=False)  # pyright: ignore
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(content):
                archive.writestr(name, content[name].to_bytes())
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _opened(path: Path) -> Iterator[ZipStore]:
    if not zipfile.is_zipfile(path):
        raise ProbeError(
            "run",
            expected=f"a whole part in {path}",
            got="no zip file",
            fix="delete the file: its samples are computed again",
        )
    store = ZipStore(path, mode="r")
    try:
        yield store
    finally:
        store.close()
