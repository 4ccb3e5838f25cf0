"""Numbers out of a record: a tidy table, and what is derived rather than stored."""

from collections.abc import Sequence

import pandas as pd
import xarray as xr

from probe.errors import ProbeError, one_of
from probe.records.schema import MEASURED


def node(record: xr.DataTree, stack: str) -> xr.Dataset:
    """The numbers of a stack. Raises ProbeError that lists the stacks of the record."""
    one_of("record", "a stack of", stack, record.children)
    return record.children[stack].to_dataset()


def entropy_ratio(record: xr.DataTree, stack: str = "llm", value: str = "entropy") -> xr.DataArray:
    """The entropy of each query ÷ ln(keys of the type that it can see), mean over queries: 1 is an
    even spread, whatever the number of keys and also under causality. NaN where no query sees two.

    value: "entropy" (pooled over heads, as in the paper) or "head_entropy". Raises ProbeError for a
    record that does not hold it: earlier versions did not, and means cannot be divided afterwards.
    """
    measured = node(record, stack)
    one_of("entropy_ratio", "an entropy of", value, ("entropy", "head_entropy"))
    if f"{value}_ratio" not in measured:
        raise ProbeError(
            "entropy_ratio",
            expected=f"a record with {value}_ratio",
            got="one that holds no ratio (written by an earlier version of probe)",
            fix="measure it again: the ratio is taken for each query, before the mean",
        )
    return measured[f"{value}_ratio"]


def to_dataframe(record: xr.DataTree, variables: str | Sequence[str] | None = None) -> pd.DataFrame:
    """A tidy table: one row a number, NaN left out. `layer` and `head` count from 0, as in code.

    Columns: stack, sample, layer, head, query_type, key_type, variable, value; empty where a
    variable has no such axis. By default all of `MEASURED` that the record has; `variables` picks
    others (one name or several), for instance "query_count" or "received", whose further axes
    become columns. Raises ProbeError for what is not a record, and for variables that it does not
    have.
    """
    if not isinstance(record, xr.DataTree):
        raise ProbeError(
            "to_dataframe", expected="a record (an xarray.DataTree)", got=type(record).__name__
        )
    names = [variables] if isinstance(variables, str) else variables or MEASURED
    held = {str(name) for stack in record.children.values() for name in stack.data_vars}
    missing = [name for name in names if name not in held]
    if missing and (variables or len(missing) == len(names)):
        raise ProbeError(
            "to_dataframe",
            expected=f"variables of {', '.join(sorted(held))}",
            got=", ".join(missing),
        )
    tables = [
        _rows(stack.dataset[name]).assign(stack=stack_name, variable=name)
        for stack_name, stack in record.children.items()
        for name in names
        if name in stack.data_vars
    ]
    table = pd.concat(tables, ignore_index=True)
    axes = ["stack", "sample", "layer", "head", "query_type", "key_type"]
    value = ["variable", "value"]
    further_axes = [name for name in table.columns if name not in (*axes, *value)]
    table = table.reindex(columns=[*axes, *further_axes, *value])
    return table.astype({"layer": "Int64", "head": "Int64"})


def _rows(array: xr.DataArray) -> pd.DataFrame:
    return array.rename("value").to_dataframe().dropna(subset="value").reset_index()
