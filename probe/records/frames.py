"""Numbers out of a record: a tidy table, and what is derived rather than stored."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from probe.errors import ProbeError
from probe.records.schema import MEASURED


def node(record: xr.DataTree, stack: str) -> xr.Dataset:
    """The numbers of a stack; `ProbeError` says which stacks there are."""
    if stack not in record.children:
        raise ProbeError(
            "record", expected=f"a stack of {', '.join(record.children)}", got=repr(stack)
        )
    return record.children[stack].to_dataset()


def entropy_ratio(record: xr.DataTree, stack: str = "llm", value: str = "entropy") -> xr.DataArray:
    """Entropy ÷ ln(key_count): 1 is an even spread, whatever the number of keys. NaN below 2 keys.

    value: "entropy" (pooled over heads, as in the paper) or "head_entropy".
    """
    measured = node(record, stack)
    if value not in measured:
        raise ProbeError(
            "entropy_ratio",
            expected=f"a variable of {', '.join(map(str, measured))}",
            got=repr(value),
        )
    keys = measured["key_count"]
    ratio = measured[value] / np.log(keys.where(keys >= 2))
    return ratio.rename("entropy_ratio").assign_attrs(long_name="entropy ÷ ln(keys)", units="ratio")


def to_dataframe(record: xr.DataTree, variables: str | Sequence[str] | None = None) -> pd.DataFrame:
    """A tidy table: one row a number, NaN left out. `layer` and `head` count from 0, as in code.

    Columns: stack, sample, layer, head, query_type, key_type, variable, value; empty where a
    variable has no such axis. By default all of `MEASURED` that the record has; `variables` picks
    others (one name or several), for instance "query_count" or "received", whose further axes
    become columns. Raises ProbeError for what is no record, and for variables that it does not
    have.
    """
    if not isinstance(record, xr.DataTree):
        raise ProbeError(
            "to_dataframe", expected="a record (an xarray.DataTree)", got=type(record).__name__
        )
    variables = [variables] if isinstance(variables, str) else variables
    chosen = variables or MEASURED
    there = {str(name) for measured in record.children.values() for name in measured.data_vars}
    if not there.intersection(chosen) or (variables and not there.issuperset(variables)):
        got = ", ".join(name for name in chosen if name not in there)
        raise ProbeError(
            "to_dataframe", expected=f"variables of {', '.join(sorted(there))}", got=got
        )
    columns = ["stack", "sample", "layer", "head", "query_type", "key_type", "variable", "value"]
    frames = [
        _rows(measured.dataset[name]).assign(stack=stack, variable=name)
        for stack, measured in record.children.items()
        for name in chosen
        if name in measured.data_vars
    ]
    frame = pd.concat(frames, ignore_index=True)
    further = [name for name in frame.columns if name not in columns]
    frame = frame.reindex(columns=[*columns[:-2], *further, *columns[-2:]])
    return frame.astype({"layer": "Int64", "head": "Int64"})


def _rows(array: xr.DataArray) -> pd.DataFrame:
    return array.rename("value").to_dataframe().dropna(subset="value").reset_index()
