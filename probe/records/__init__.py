"""The record: what a measurement returns, and the only thing that figures, tables and reports read.

An `xarray.DataTree`. The root holds what belongs to a sample (texts, tokens, images), with the
provenance in `attrs`; below it is one node for each stack of layers (`llm`, `vision`, ...), which
holds the numbers. Needs no torch, so a record is read and drawn on any laptop.

    record = probe.open_record("run.zarr.zip")
    attention = record["llm"]["mass"].sel(query_type="response", key_type="vision")
    attention.mean("head")           # (sample, layer)
    probe.to_dataframe(record)       # tidy, for pandas

| file | what |
|---|---|
| `schema.py` | every variable: dims, units, meaning, range; `dataset` makes one from arrays |
| `validate.py` | `assemble` a record from plain arrays, `validate` one |
| `combine.py` | `merge` records; `combine` a new one from a `part` for each sample |
| `concat.py` | `join` the parts of a run |
| `io.py` | `save_record`, `open_record`: one file, whole or not at all |
| `part_files.py` | some samples of a run as a file |
| `zarr_store.py`, `archive.py` | datasets as bytes of zarr, these as one zip |
| `frames.py` | `to_dataframe`, `entropy_ratio`, `node` |
| `compact.py` | `without_pixels`: a record as a run keeps it |
| `thumbnails.py` | small copies of images |
| `run_directory.py` | results over many samples, resumable; its parts and the rest: `run_*.py` |
| `sample_blocks.py` | some samples of a dataset at a time, from memory or the disk |
| `run_work.py` | one process of a run: it claims samples, measures them and writes parts |
| `provenance.py` | what has to be known to make a result again; hashes |
| `bootstrap.py`, `running_bootstrap.py` | intervals over images, of all samples or some at a time |
| `rank_agreement.py` | rank correlations of maps |
| `auroc.py` | how well a number tells two kinds of samples apart |
| `reliability.py` | whether attention predicts being right: of a run |
"""

from probe.records.combine import combine, merge, part
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
    "combine",
    "entropy_ratio",
    "merge",
    "node",
    "open_record",
    "part",
    "save_record",
    "to_dataframe",
    "validate",
]
