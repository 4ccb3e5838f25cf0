"""Make a record from plain arrays, and check that one keeps the contract of `schema.py`."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import xarray as xr

from probe.errors import ProbeError
from probe.records.schema import (
    COUNT_OF,
    LABELS,
    REQUIRED,
    ROOT,
    STACK,
    Variable,
    as_text,
    dataset,
    plain_attrs,
)

ACCESSOR = "probe.accessor"
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
    root = _dataset("root", samples, ROOT, ["sample"]).assign_attrs(plain_attrs(attrs))
    nodes = {name: _dataset(name, values, STACK, LABELS) for name, values in stacks.items()}
    return validate(tree_of(root, nodes, "record.assemble"))


def _dataset(
    path: str, values: Mapping[str, Any], schema: Mapping[str, Variable], labels: Sequence[str]
) -> xr.Dataset:
    """The dataset of the root or of a stack from plain arrays; `labels` are its coordinates."""
    coords, arrays = divided(values, labels)
    return dataset("record.assemble", arrays, schema, coords, path=f"{path}/")


def divided(
    values: Mapping[str, Any], labels: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those that are coordinates, and the others."""
    coords = {name: values[name] for name in labels if name in values}
    return coords, {name: array for name, array in values.items() if name not in coords}


def tree_of(root: xr.Dataset, nodes: Mapping[Any, xr.Dataset], called: str) -> xr.DataTree:
    """Root and stacks (by name: a file keeps no order) as one tree; `called` is named if their
    samples disagree.
    """
    try:
        return xr.DataTree.from_dict({"/": root, **dict(sorted(nodes.items()))})
    except ValueError as error:
        raise ProbeError(
            called, expected="as many samples in each stack as in the root", got=str(error)
        ) from None


def validate(record: Any) -> xr.DataTree:
    """The record itself if it keeps the contract. Raises ProbeError naming the variable that breaks
    it.

    Variables that are not in the schema are a user's own: they pass unchecked.
    """
    _register_accessor()
    if not isinstance(record, xr.DataTree):
        raise _broken("a record (an xarray.DataTree)", type(record).__name__)
    if "sample" not in record.coords or not record.children:
        got = ", ".join(map(str, record)) or "nothing"
        raise _broken("a record with the coordinate `sample` and at least one stack", got)
    _check_root(record.to_dataset())
    some_hidden = record.attrs.get("intervention") or record.attrs.get("reducer")
    hidden = bool(some_hidden) or record.attrs.get("sinks") == "drop"
    for name, child in record.children.items():
        _check_stack(name, child.to_dataset(), hidden)
    return record


def _register_accessor() -> None:
    """Makes `record.probe` available, the first time that a record is made or opened.

    The accessor lies above all rooms and registers itself with xarray when it is imported, so it is
    named here and not imported: nothing in this room depends on it.
    """
    import_module(ACCESSOR)


def _broken(expected: str, got: str) -> ProbeError:
    return ProbeError("record.validate", expected=expected, got=got)


def _check_root(root: xr.Dataset) -> None:
    ids, counts = np.unique(as_text(root["sample"].values), return_counts=True)
    if (counts > 1).any():
        repeated = str(ids[counts > 1][0])
        raise _broken("each sample once", f"{repeated!r} {counts.max()} times")
    for name, value in root.attrs.items():
        if not isinstance(value, str | int | float):
            raise _broken(f"attrs[{name!r}] to be a string or a number", repr(value))
    for name, expected in ROOT.items():
        if name in root.data_vars:
            _check_variable(name, root.variables[name], expected)


def _check_stack(stack: str, node: xr.Dataset, hidden: bool) -> None:
    missing = [variable for variable in REQUIRED if variable not in node.data_vars]
    missing += [dim for dim in LABELS if dim in node.dims and dim not in node.coords]
    if missing:
        known = ", ".join(map(str, node.variables))
        raise _broken(f"{stack}/{missing[0]}", f"only {known}")
    for variable, expected in STACK.items():
        if variable in node.data_vars:
            _check_variable(f"{stack}/{variable}", node.variables[variable], expected)
    _check_counts(stack, node)
    _check_sums(stack, node, hidden)


def _check_variable(path: str, array: xr.Variable, variable: Variable) -> None:
    def broken(got: str) -> ProbeError:
        return variable.mismatch("record.validate", path, got)

    values = array.values
    if array.dims != variable.dims_of(array.ndim):
        raise broken(f"dims ({' '.join(map(str, array.dims))})")
    if values.dtype != variable.dtype:
        raise broken(f"dtype {values.dtype}")
    if array.attrs.get("units") != variable.units or "long_name" not in array.attrs:
        raise broken(f"attrs {dict(array.attrs)}")
    if variable.dtype == "object":
        if not all(type(value) is str for value in values.flat):
            raise _broken(f"only strings in {path}", "something else")
        return
    known = values[~np.isnan(values)]
    if not known.size:
        return
    low = known.min()
    high = known.max()
    largest = min(variable.high + _SLACK, 3e38)  # infinity is never a value
    if low < variable.low - _SLACK or high > largest:
        raise broken(f"values from {low:g} to {high:g}")


def _aligned(count: xr.Variable, dims: Sequence[Any]) -> np.ndarray:
    """The values with an axis for each of `dims`, of length 1 where the count has none."""
    return count.values[tuple(slice(None) if dim in count.dims else None for dim in dims)]


def _check_counts(stack: str, node: xr.Dataset) -> None:
    variables = node.variables
    for name, count in COUNT_OF.items():
        if name not in variables or count not in variables:
            continue
        variable = variables[name]
        known = ~np.isnan(variable.values)
        if (known & (_aligned(variables[count], variable.dims) == 0)).any():
            raise _broken(f"{stack}/{name} to be NaN where {count} is 0", "a number")


def _check_sums(stack: str, node: xr.Dataset, hidden: bool) -> None:
    """Σ_B mass·query_count = queries of A, and Σ_B share = 1: every query spends all of its
    attention. What a learned sink takes of A is known over all queries, not those of share alone.

    A query sees itself, so the queries of A are the largest query_count(A → B) over B. Where an
    intervention or a reducer has `hidden` some keys, the sums are at most that large. In the LLM
    the sum of masses is not known then: queries that were removed are counted, and in a sliding
    window they see other types than those that are left.
    """
    mass = node.variables["mass"]
    counts = _aligned(node.variables["query_count"], mass.dims).astype(np.float64)
    spent = np.nansum(mass.values * counts, -1)
    has_sink = "learned_sink" in node.variables
    sink = np.nan_to_num(node.variables["learned_sink"].values) if has_sink else 0.0
    queries = np.broadcast_to(counts.max(-1, initial=0), spent.shape)
    measured = ~np.isnan(mass.values).all(-1) & (queries > 0)
    total_mass = (spent / np.maximum(queries, 1) + sink)[measured]
    is_known = not hidden or stack != "llm"
    sums = {"mass·query_count ÷ queries": total_mass} if is_known else {}
    if "share" in node.variables:
        share = node.variables["share"].values
        has_share = measured & ~np.isnan(share).all(-1)
        sums["share"] = np.nansum(share, -1)[has_share]
    for name, total in sums.items():
        is_part = hidden or (has_sink and name == "share")
        error = total - 1 if is_part else abs(total - 1)
        worst = error.max(initial=0)
        if worst > _SUM_SLACK:
            raise _broken(f"{stack}/{name} to sum to 1 over key_type", f"{worst:.2g} off")
