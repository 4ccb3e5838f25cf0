"""Samples of several parts of a run as one: any datasets or trees with a coordinate `sample`.

    join([part, other])

Values are copied bit for bit, and ragged axes padded to the longest: NaN in floats, -1 in signed
and 0 in unsigned integers, False, or "".
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from probe.errors import ProbeError
from probe.records.schema import OPTIONAL

SAMPLE = "sample"
Labelled = xr.Dataset | xr.DataTree
Sizes = Mapping[str, Mapping[Any, int]]  # lengths of the dimensions, by node
PADDING = {"f": np.nan, "i": -1, "u": 0, "b": False}  # by kind of dtype; text: ""


class Node(NamedTuple):
    """A node of a part: what a dataset holds, without what makes a dataset slow to build."""

    variables: Mapping[Any, xr.Variable]
    coords: set[Any]
    attrs: dict[Any, Any]

    @classmethod
    def of(cls, dataset: xr.Dataset) -> "Node":
        return cls(dict(dataset.variables), set(dataset.coords), dict(dataset.attrs))

    @property
    def sizes(self) -> dict[Any, int]:
        return {
            dim: size
            for variable in self.variables.values()
            for dim, size in variable.sizes.items()
        }

    def rows(self, samples: Sequence[int]) -> "Node":
        """Some samples, by position."""
        chosen = {
            name: variable.isel({SAMPLE: samples}, missing_dims="ignore")
            for name, variable in self.variables.items()
        }
        return self._replace(variables=chosen)

    def dataset(self) -> xr.Dataset:
        coords = {name: self.variables[name] for name in self.variables if name in self.coords}
        others = {name: each for name, each in self.variables.items() if name not in self.coords}
        return xr.Dataset(others, coords, self.attrs)


Nodes = Mapping[str, Node]  # by path


def join(parts: Sequence[Labelled]) -> Labelled:
    """Parts one after the other along `sample`.

    Variables without samples must agree where both have values. Raises ProbeError when parts differ
    in their nodes or variables.
    """
    nodes = [
        {path: Node.of(dataset) for path, dataset in datasets_of(part).items()} for part in parts
    ]
    joined = {path: node.dataset() for path, node in join_nodes(nodes).items()}
    return joined["/"] if isinstance(parts[0], xr.Dataset) else xr.DataTree.from_dict(joined)


def join_nodes(parts: Sequence[Nodes], sizes: Sizes | None = None) -> dict[str, Node]:
    """`join` for parts as nodes by path. `sizes`: least lengths of ragged dimensions."""
    first = parts[0]
    for other in parts[1:]:
        if other.keys() != first.keys():
            raise ProbeError(
                "run", expected=f"parts with the nodes {sorted(first)}", got=str(sorted(other))
            )
    least = sizes or {}
    return {
        path: _joined_part(path, [each[path] for each in parts], least.get(path, {}))
        for path in first
    }


def sizes_of(nodes: Nodes) -> dict[str, dict[str, int]]:
    """The lengths of all dimensions but the samples', by node."""
    return {
        path: {str(dim): size for dim, size in node.sizes.items() if dim != SAMPLE}
        for path, node in nodes.items()
    }


def select(data: Labelled, samples: slice | Sequence[int]) -> Labelled:
    """Some samples, by position."""
    return data.isel({SAMPLE: samples}, missing_dims="ignore")


def ids_of(data: Labelled) -> list[str]:
    """The sample ids. Raises ProbeError when there are none or one occurs twice."""
    if SAMPLE not in data.coords:
        raise ProbeError(
            "run",
            expected=f"a coordinate {SAMPLE!r} with ids",
            got=f"only {', '.join(map(str, data.coords))}",
        )
    ids = [str(name) for name in np.atleast_1d(data.coords[SAMPLE].values)]
    if len(set(ids)) < len(ids):
        repeated, _ = Counter(ids).most_common(1)[0]
        raise ProbeError("run", expected="every id once", got=f"{repeated!r} twice")
    return ids


def datasets_of(data: Labelled) -> dict[str, xr.Dataset]:
    """The datasets of a tree (of a dataset: itself) by path, with text as objects."""
    if isinstance(data, xr.Dataset):
        return {"/": with_text(data)}
    return {node.path: with_text(node.to_dataset(inherit=False)) for node in data.subtree}


def with_text(dataset: xr.Dataset) -> xr.Dataset:
    """Text as Python's strings in an object array, and no encoding of the file it came from."""
    texts = {
        name: variable.copy(data=np.vectorize(str, "O")(variable.values))
        for name, variable in dataset.variables.items()
        if variable.dtype.kind in "UTO"
    }
    return dataset.assign(texts).drop_encoding()


def _joined_part(path: str, nodes: list[Node], sizes: Mapping[Any, int]) -> Node:
    names = nodes[0].variables.keys()
    for other in nodes[1:]:
        if (other.variables.keys() ^ names) - {*OPTIONAL}:
            raise ProbeError(
                "run",
                expected="the same variables in all parts",
                got=f"{only_in_one(nodes[0], other)} only in some ({path})",
            )
    return concatenated("run", nodes, sizes)


def only_in_one(first: Node, other: Node) -> str:
    differing = (first.variables.keys() ^ other.variables.keys()) - {*OPTIONAL}
    return ", ".join(sorted(map(str, differing)))


def concatenated(called: str, nodes: list[Node], least: Mapping[Any, int] | None = None) -> Node:
    """The nodes one after the other along `sample`, with all variables that one of them has."""
    lengths = [node.sizes for node in nodes]
    sizes: dict[Any, int] = dict(least or {})
    for each in lengths:
        for dim, size in each.items():
            sizes[dim] = max(size, sizes.get(dim, 0))
    names = dict.fromkeys(name for node in nodes for name in node.variables)
    samples = [each.get(SAMPLE, 0) for each in lengths]
    variables = {
        name: _concatenated_variable(called, name, nodes, sizes, samples) for name in names
    }
    coords = {name for node in nodes for name in node.coords}
    return Node(variables, coords, nodes[0].attrs)


def _concatenated_variable(
    called: str, name: Any, nodes: list[Node], sizes: Mapping[Any, int], samples: Sequence[int]
) -> xr.Variable:
    known = [node.variables[name] for node in nodes if name in node.variables]
    template = max(known, key=lambda variable: variable.ndim)  # with layers, where those differ
    dims = template.dims
    dtypes = {variable.dtype for variable in known}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.result_type(*dtypes)
    arrays: list[np.ndarray] = []
    for node, count in zip(nodes, samples, strict=True):
        shape = [count if dim == SAMPLE else sizes[dim] for dim in dims]
        arrays.append(_padded(node.variables.get(name), dims, shape, dtype))
    if SAMPLE in dims:
        array = np.concatenate(arrays, dims.index(SAMPLE))
    else:
        array = agreed(called, name, arrays)
    return xr.Variable(dims, array, template.attrs)


def _padded(
    variable: xr.Variable | None, dims: tuple, shape: Sequence[int], dtype: np.dtype
) -> np.ndarray:
    """The values with all dimensions, filled up to a shape: the same array where nothing is
    missing.
    """
    if variable is not None and variable.dims == dims and list(variable.shape) == list(shape):
        return variable.values
    array = np.full(shape, PADDING.get(dtype.kind, ""), dtype)
    if variable is not None:
        broadcast = {
            dim: variable.sizes.get(dim, size) for dim, size in zip(dims, shape, strict=True)
        }
        values = variable.set_dims(broadcast).values
        array[tuple(slice(size) for size in values.shape)] = values
    return array


def agreed(called: str, name: Any, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The array with most values. Raises ProbeError unless all agree where they have values."""
    padding = PADDING.get(arrays[0].dtype.kind, "")
    arrays = list({id(array): array for array in arrays}.values())  # equal ones are decoded once
    if len(arrays) == 1:
        return arrays[0].copy()
    known = [array == array if padding is np.nan else array != padding for array in arrays]
    fullest = int(np.argmax([mask.sum() for mask in known]))
    for array, mask in zip(arrays, known, strict=True):
        if (mask & known[fullest] & (array != arrays[fullest])).any():
            raise ProbeError(
                called, expected=f"{name!r} alike in all parts", got="parts that differ in it"
            )
    return arrays[fullest].copy()
