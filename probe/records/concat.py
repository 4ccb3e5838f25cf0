"""Samples of several records, or of several parts of a run, as one.

    merge([record, other])        # records: the contract is checked before and after
    join([part, other])           # any datasets or trees with a coordinate `sample`

Both copy values bit for bit and pad ragged axes to the longest: NaN in floats, -1 in signed and 0
in unsigned integers, False, or "".
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from probe.errors import ProbeError, not_empty
from probe.records.schema import CONDITIONS, LABELS, OPTIONAL
from probe.records.validate import tree_of, validate

SAMPLE = "sample"
Labelled = xr.Dataset | xr.DataTree
Sizes = Mapping[str, Mapping[Any, int]]  # lengths of the dimensions, by node
PADDING = {"f": np.nan, "i": -1, "u": 0, "b": False}  # by kind of dtype; text: ""


def merge(records: Sequence[xr.DataTree]) -> xr.DataTree:
    """One record with the samples of all, in order.

    Records that measured different things (another model, layers, types, variables, or a condition
    of `CONDITIONS`) are refused with the name of what differs: give those to a plot side by side
    instead. Other attrs that differ (a prompt's hash) become a list "a, b".
    """
    return combine([validate(record) for record in records])


def combine(records: Sequence[xr.DataTree]) -> xr.DataTree:
    """`merge` for records that were just built: only the result is checked."""
    records = list(records)
    not_empty("record.merge", "record", records)
    first = records[0]
    if len(records) == 1:
        return validate(first)
    for record in records[1:]:
        for name in CONDITIONS:
            _same(f"attrs[{name!r}]", first.attrs.get(name), record.attrs.get(name))
        _same("stacks", sorted(first.children), sorted(record.children))
    roots = [Node.of(record.to_dataset(inherit=False)) for record in records]
    root = _concatenated("record.merge", roots).dataset()
    stacks = {
        name: _merged_stack(name, [record.children[name] for record in records])
        for name in first.children
    }
    return validate(tree_of(root.assign_attrs(_joined_attrs(records)), stacks, "record.merge"))


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
        return xr.Dataset(dict(self.variables), attrs=self.attrs).set_coords(self.coords)


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


def _merged_stack(stack: str, nodes: list[xr.DataTree]) -> xr.Dataset:
    datasets = [node.to_dataset(inherit=False) for node in nodes]
    first = datasets[0]
    for other in datasets[1:]:
        for name in LABELS:
            _same(f"{stack} {name}", _labels(first, name), _labels(other, name))
        if differing := _only_in_one(first, other):
            raise _different(f"{stack} variables", f"{differing} in only one")
        for name in first.variables.keys() & other.variables.keys():
            dims, other_dims = first[name].dims, other[name].dims
            # a count that is the same in all layers has no axis of layers
            if (set(dims) ^ set(other_dims)) - {"layer"}:
                raise _different(f"dims of {stack}/{name}", f"{dims} and {other_dims}")
    return _concatenated("record.merge", list(map(Node.of, datasets))).dataset()


def _joined_part(path: str, nodes: list[Node], sizes: Mapping[Any, int]) -> Node:
    names = nodes[0].variables.keys()
    for other in nodes[1:]:
        if (other.variables.keys() ^ names) - {*OPTIONAL}:
            raise ProbeError(
                "run",
                expected="the same variables in all parts",
                got=f"{_only_in_one(nodes[0], other)} only in some ({path})",
            )
    return _concatenated("run", nodes, sizes)


def _only_in_one(first: Node | xr.Dataset, other: Node | xr.Dataset) -> str:
    differing = (first.variables.keys() ^ other.variables.keys()) - {*OPTIONAL}
    return ", ".join(sorted(map(str, differing)))


def _labels(dataset: xr.Dataset, name: str) -> list:
    return dataset.coords[name].values.tolist() if name in dataset.coords else []


def _same(what: str, first: Any, other: Any) -> None:
    if first != other:
        raise _different(what, f"{first!r} and {other!r}")


def _different(what: str, got: str) -> ProbeError:
    fix = "draw them side by side instead: plots take {label: record}"
    return ProbeError("record.merge", expected=f"the same {what}", got=got, fix=fix)


def _concatenated(called: str, nodes: list[Node], least: Mapping[Any, int] | None = None) -> Node:
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
    dtypes = {variable.dtype for variable in known}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.result_type(*dtypes)
    full = [sizes[dim] for dim in template.dims]
    axis = template.dims.index(SAMPLE) if SAMPLE in template.dims else None
    arrays: list[np.ndarray] = []
    for node, count in zip(nodes, samples, strict=True):
        shape = [count if place == axis else size for place, size in enumerate(full)]
        arrays.append(_padded(node.variables.get(name), template.dims, shape, dtype))
    array = agreed(called, name, arrays) if axis is None else np.concatenate(arrays, axis)
    return xr.Variable(template.dims, array, template.attrs)


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


def _joined_attrs(records: list[xr.DataTree]) -> dict[str, Any]:
    joined = {}
    for name in dict.fromkeys(name for record in records for name in record.attrs):
        values = [record.attrs[name] for record in records if name in record.attrs]
        texts = dict.fromkeys(text for value in values for text in str(value).split(", "))
        joined[name] = values[0] if len(set(values)) == 1 else ", ".join(texts)
    return joined
