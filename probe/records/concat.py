"""Put the samples of several records into one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from probe.errors import ProbeError
from probe.records.schema import CONDITIONS, LABELS
from probe.records.validate import tree_of, validate

_PAD = {"f": np.nan, "i": -1, "u": 0, "b": False, "O": ""}


def merge(records: Sequence[xr.DataTree]) -> xr.DataTree:
    """One record with the samples of all, in order. Values are copied bit for bit; ragged axes are
    padded.

    Records that measured different things (another model, layers, types, variables, or a condition
    of `CONDITIONS`) are refused with the name of what differs: give those to a plot side by side
    instead. Other attrs that differ (a prompt's hash) become a list "a, b".
    """
    records = [validate(record) for record in records]
    if not records:
        raise ProbeError("record.merge", expected="at least one record", got="none")
    first = records[0]
    for record in records[1:]:
        for name in CONDITIONS:
            _same(f"attrs[{name!r}]", first.attrs.get(name), record.attrs.get(name))
        _same("stacks", sorted(first.children), sorted(record.children))
    root = _concatenated([record.to_dataset(inherit=False) for record in records])
    stacks = {
        name: _merged_stack(name, [record.children[name] for record in records])
        for name in first.children
    }
    return validate(tree_of(root.assign_attrs(_joined_attrs(records)), stacks, "record.merge"))


def _merged_stack(stack: str, nodes: list[xr.DataTree]) -> xr.Dataset:
    datasets = [node.to_dataset(inherit=False) for node in nodes]
    for other in datasets[1:]:
        for name in LABELS:
            first, second = (_label(dataset, name) for dataset in (datasets[0], other))
            _same(f"{stack} {name}", first, second)
        alone = sorted(map(str, datasets[0].variables.keys() ^ other.variables.keys()))
        if alone:
            raise _different(f"{stack} variables", f"{', '.join(alone)} in only one")
        for name in other.variables:
            first, second = (each[name].dims for each in (datasets[0], other))
            if (set(first) ^ set(second)) - {
                "layer"
            }:  # a count that is the same in all layers has none
                raise _different(f"dims of {stack}/{name}", f"{first} and {second}")
    return _concatenated(datasets)


def _label(dataset: xr.Dataset, name: str) -> list:
    return dataset.coords[name].values.tolist() if name in dataset.coords else []


def _same(what: str, first: Any, other: Any) -> None:
    if first != other:
        raise _different(what, f"{first!r} and {other!r}")


def _different(what: str, got: str) -> ProbeError:
    fix = "draw them side by side instead: plots take {label: record}"
    return ProbeError("record.merge", expected=f"the same {what}", got=got, fix=fix)


def _concatenated(datasets: list[xr.Dataset]) -> xr.Dataset:
    templates: dict[Any, xr.Variable] = {}
    for name, variable in (item for dataset in datasets for item in dataset.variables.items()):
        if (
            name not in templates or variable.ndim > templates[name].ndim
        ):  # the one whose layers differ, if any
            templates[name] = variable
    coords = {name for dataset in datasets for name in dataset.coords}
    sizes: dict[Any, int] = {}
    for dataset in datasets:
        sizes |= {dim: max(size, sizes.get(dim, 0)) for dim, size in dataset.sizes.items()}
    merged = {}
    for name, template in templates.items():
        if "sample" in template.dims:
            grown = [_grown(dataset, name, template, sizes) for dataset in datasets]
            data = np.concatenate(grown, template.dims.index("sample"))
            template = xr.Variable(template.dims, data, template.attrs)
        merged[name] = template
    return xr.Dataset(merged).set_coords(coords)


def _grown(
    dataset: xr.Dataset, name: Any, template: xr.Variable, sizes: Mapping[Any, int]
) -> np.ndarray:
    """The variable padded to `sizes`; one that only other records have (an image) is all
    padding.
    """
    sizes = {**sizes, "sample": dataset.sizes["sample"]}
    grown = np.full(
        [sizes[dim] for dim in template.dims], _PAD[template.dtype.kind], template.dtype
    )
    if name in dataset.variables:
        variable = dataset.variables[name]
        array = variable.set_dims(
            {dim: variable.sizes.get(dim, sizes[dim]) for dim in template.dims}
        ).values
        grown[tuple(slice(size) for size in array.shape)] = array
    return grown


def _joined_attrs(records: list[xr.DataTree]) -> dict[str, Any]:
    joined = {}
    for name in dict.fromkeys(name for record in records for name in record.attrs):
        values = [record.attrs[name] for record in records if name in record.attrs]
        parts = dict.fromkeys(part for value in values for part in str(value).split(", "))
        joined[name] = values[0] if len(set(values)) == 1 else ", ".join(parts)
    return joined
