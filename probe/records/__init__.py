"""The record: what a measurement returns, and the only thing that figures, tables and reports read.

An `xarray.DataTree`. The root holds what belongs to a sample (texts, tokens, images), with the
provenance in `attrs`; below it is one node a stack of layers (`llm`, `vision`, ...), which holds
the numbers. Needs no torch, so a record is read and drawn on any laptop.

    record = probe.open("run.zarr.zip")
    record["llm"]["mass"].sel(query_type="response", key_type="vision").mean("head")   # (sample, layer)
    probe.to_dataframe(record)                                                          # tidy, for pandas

| file | what |
|---|---|
| `variables.py` | every variable: dims, units, meaning, range |
| `contract.py` | `assemble` a record from plain arrays, `validate` one |
| `merging.py` | `merge` records of the same kind |
| `storage.py` | `save_record`, `open_record`: one file, whole or not at all |
| `reading.py` | `to_dataframe`, `entropy_ratio`, `node` |
"""

from probe.records.concat import merge
from probe.records.frames import entropy_ratio, node, to_dataframe
from probe.records.io import open_record, save_record
from probe.records.schema import EDGES, MEASURED, ROOT, STACK, Variable
from probe.records.validate import assemble, validate

__all__ = [
    "EDGES",
    "MEASURED",
    "ROOT",
    "STACK",
    "Variable",
    "assemble",
    "entropy_ratio",
    "merge",
    "node",
    "open_record",
    "save_record",
    "to_dataframe",
    "validate",
]
