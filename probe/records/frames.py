"""Numbers out of a record: a tidy table, and what is derived rather than stored."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from probe.errors import ProbeError, one_of
from probe.records.schema import MEASURED


def node(record: xr.DataTree, stack: str) -> xr.Dataset:
    """The numbers of a stack. Raises ProbeError that lists the stacks of the record."""
    one_of("record", "a stack of", stack, record.children)
    return record.children[stack].to_dataset()


def entropy_ratio(record: xr.DataTree, stack: str = "llm", value: str = "entropy") -> xr.DataArray:
    """Entropy ÷ ln(key_count): 1 is an even spread, whatever the number of keys. NaN below 2 keys.

    value: "entropy" (pooled over heads, as in the paper) or "head_entropy".
    """
    measured = node(record, stack)
    one_of("entropy_ratio", "a variable of", value, measured)
    keys = measured["key_count"]
    ratio = measured[value] / np.log(keys.where(keys >= 2))
    return ratio.rename("entropy_ratio").assign_attrs(long_name="entropy ÷ ln(keys)", units="ratio")


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
