"""Make a record from plain arrays, and check that one keeps the contract of `variables.py`."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from probe.errors import ProbeError
from probe.records.schema import COUNT_OF, EDGES, LABELS, REQUIRED, ROOT, STACK, Variable

_SLACK = 1e-5  # float32 sums of thousands of probabilities overshoot 1 by less
_SUM_SLACK = 1e-4


def assemble(
    samples: Mapping[str, Any], stacks: Mapping[str, Mapping[str, Any]], attrs: Mapping[str, Any]
) -> xr.DataTree:
    """A validated record from plain arrays: dims, dtypes, units and names come from `ROOT` and
    `STACK`.

    samples: {"sample": ids, "question": ..., "tokens": ...}; stacks: {"llm": {"query_type": names,
    "key_type": names, "mass": array, ...}}; `layer` and `head` count from 0 where not given. Raises
    ProbeError that names the variable which is unknown, or whose dims, dtype or values break the
    contract.

    >>> node = {"query_type": ["text"], "key_type": ["text"], "mass": np.ones((1, 2, 4, 1, 1)),
    ...         "query_count": [[[3]]], "key_count": [[3]]}
    >>> assemble({"sample": ["a"]}, {"llm": node}, {"model": "none"})["llm"]["mass"].dims
    ('sample', 'layer', 'head', 'query_type', 'key_type')
    """
    root = _dataset("root", samples, ROOT, ("sample",))
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in attrs.items()
    }
    nodes = {
        name: _numbered(_dataset(name, values, STACK, LABELS)) for name, values in stacks.items()
    }
    return validate(tree_of(root.assign_attrs(plain), nodes, "record.assemble"))


def _dataset(
    where: str, values: Mapping[str, Any], table: Mapping[str, Variable], labels: Iterable[str]
) -> xr.Dataset:
    coords = {name: (name, _labels(values[name])) for name in labels if name in values}
    if "key_box" in values:
        coords["edge"] = ("edge", _labels(EDGES))
    unknown = values.keys() - table.keys() - coords.keys()
    if unknown:
        expected = f"{where} variables of {', '.join(table)}"
        raise ProbeError("record.assemble", expected=expected, got=", ".join(sorted(unknown)))
    variables = {
        name: _variable(f"{where}/{name}", values[name], table[name])
        for name in table
        if name in values
    }
    try:
        return xr.Dataset(variables, coords)
    except ValueError as error:  # xarray names the dimension whose sizes disagree
        expected = f"equal sizes in {where} on shared dims"
        raise ProbeError("record.assemble", expected=expected, got=str(error)) from None


def _variable(path: str, values: Any, kind: Variable) -> xr.Variable:
    array = np.asarray(values, kind.dtype)
    if kind.dtype == "object":  # numpy's own strings among Python's cannot be written
        array = np.vectorize(lambda value: str(value) if isinstance(value, str) else value, "O")(
            array
        )
    dims = kind.dims_of(array.ndim)
    if len(dims) != array.ndim:
        raise _mismatch("record.assemble", path, kind, f"shape {array.shape}")
    return xr.Variable(dims, array, {"long_name": kind.long_name, "units": kind.units})


def _labels(values: Any) -> np.ndarray:
    """Names as objects (numpy's fixed-width strings would grow with the longest), numbers as they
    are.
    """
    return np.asarray(values, None if np.asarray(values).dtype.kind in "iu" else object)


def _numbered(node: xr.Dataset) -> xr.Dataset:
    missing = [name for name in ("layer", "head") if name in node.dims and name not in node.coords]
    return node.assign_coords({name: np.arange(node.sizes[name]) for name in missing})


def tree_of(root: xr.Dataset, nodes: Mapping[Any, xr.Dataset], called: str) -> xr.DataTree:
    """Root and stacks (by name: a file keeps no order) as one tree; `called` is named if their
    samples disagree.
    """
    try:
        return xr.DataTree.from_dict({"/": root, **dict(sorted(nodes.items()))})
    except ValueError as error:
        expected = "as many samples in each stack as in the root"
        raise ProbeError(called, expected=expected, got=str(error)) from None


def validate(record: Any) -> xr.DataTree:
    """The record itself if it keeps the contract; otherwise `ProbeError` names the variable that
    breaks it.

    Variables that the tables do not know are a user's own: they pass unchecked.
    """
    if not isinstance(record, xr.DataTree):
        raise _broken("a record (an xarray.DataTree)", type(record).__name__)
    if "sample" not in record.coords or not record.children:
        got = ", ".join(map(str, record)) or "nothing"
        raise _broken("a record with the coordinate `sample` and at least one stack", got)
    _check_root(record.to_dataset())
    hidden = (
        any(record.attrs.get(name) for name in ("intervention", "reducer"))
        or record.attrs.get("sinks") == "drop"
    )
    for name, child in record.children.items():
        _check_stack(name, child.to_dataset(), hidden)
    return record


def _broken(expected: str, got: str) -> ProbeError:
    return ProbeError("record.validate", expected=expected, got=got)


def _mismatch(called: str, path: str, kind: Variable, got: str) -> ProbeError:
    limits = "" if np.isinf(kind.low) else f", {kind.low:g} to {kind.high:g}"
    return ProbeError(
        called, expected=f"{path} ({kind.dims}) {kind.dtype} in {kind.units!r}{limits}", got=got
    )


def _check_root(root: xr.Dataset) -> None:
    ids, counts = np.unique(root["sample"].values.astype(str), return_counts=True)
    if (counts > 1).any():
        raise _broken("each sample once", f"{str(ids[counts > 1][0])!r} {counts.max()} times")
    for name, value in root.attrs.items():
        if not isinstance(value, str | int | float):
            raise _broken(f"attrs[{name!r}] to be a string or a number", repr(value))
    for name in [name for name in ROOT if name in root.data_vars]:
        _check_variable(name, root[name], ROOT[name])


def _check_stack(stack: str, node: xr.Dataset, hidden: bool) -> None:
    missing = [variable for variable in REQUIRED if variable not in node.data_vars]
    missing += [dim for dim in LABELS if dim in node.dims and dim not in node.coords]
    if missing:
        raise _broken(f"{stack}/{missing[0]}", f"only {', '.join(map(str, node.variables))}")
    for variable in [name for name in STACK if name in node.data_vars]:
        _check_variable(f"{stack}/{variable}", node[variable], STACK[variable])
    _check_counts(stack, node)
    _check_sums(stack, node, hidden)


def _check_variable(path: str, array: xr.DataArray, kind: Variable) -> None:
    values = array.values
    if array.dims != kind.dims_of(array.ndim):
        raise _mismatch("record.validate", path, kind, f"dims ({' '.join(map(str, array.dims))})")
    if values.dtype != kind.dtype:
        raise _mismatch("record.validate", path, kind, f"dtype {values.dtype}")
    if array.attrs.get("units") != kind.units or "long_name" not in array.attrs:
        raise _mismatch("record.validate", path, kind, f"attrs {dict(array.attrs)}")
    if kind.dtype == "object":
        if not all(type(value) is str for value in values.flat):
            raise _broken(f"only strings in {path}", "something else")
        return
    known = values[~np.isnan(values)]
    if known.size and not (
        kind.low - _SLACK <= known.min() and known.max() <= min(kind.high + _SLACK, 3e38)
    ):
        raise _mismatch(
            "record.validate", path, kind, f"values from {known.min():g} to {known.max():g}"
        )


def _check_counts(stack: str, node: xr.Dataset) -> None:
    for variable, count in COUNT_OF.items():
        if (
            variable in node
            and count in node
            and bool((node[variable].notnull() & (node[count] == 0)).any())
        ):
            raise _broken(f"{stack}/{variable} to be NaN where {count} is 0", "a number")


def _check_sums(stack: str, node: xr.Dataset, hidden: bool) -> None:
    """Σ_B mass·query_count = queries of A, and Σ_B share = 1: every query spends all of its
    attention.

    A query sees itself, so the queries of A are the largest query_count(A → B) over B. Where an
    intervention or a reducer has `hidden` some of it, it is at most that much.
    """
    counts = node["query_count"]
    queries = counts.max("key_type")
    sums = {
        "mass·query_count ÷ queries": (node["mass"] * counts).sum("key_type")
        / queries.where(queries > 0)
    }
    if "share" in node:
        sums["share"] = node["share"].sum("key_type", min_count=1)
    measured = node["mass"].notnull().any("key_type")
    for what, total in sums.items():
        error = total - 1 if hidden else abs(total - 1)
        worst = error.where(measured).max().item()
        if worst > _SUM_SLACK:
            raise _broken(f"{stack}/{what} to sum to 1 over key_type", f"{worst:.2g} off")
