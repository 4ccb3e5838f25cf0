"""Parts of a run: some of its samples in one file, named so that no other worker chooses the same.

path = write_part(data, folder, worker="3")
read_part(path); read_ids(path)
"""

import errno
import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from probe.errors import ProbeError, reason_of
from probe.records.archive import SUFFIX, read_archive, write_archive
from probe.records.concat import SAMPLE, Labelled, Node, datasets_of, ids_of, sizes_of
from probe.records.part_decoder import UndecodableError, decoded
from probe.records.zarr_store import chunks_of, from_zarr, store_of

KIND = "probe_kind"  # attr of a part's root in the file: whether it is a dataset or a tree
RUN = "probe_run"  # attr of a part's root in the file: fingerprint and versions, as JSON
OF_PARTS = (KIND, RUN)


def write_part(
    data: Labelled,
    folder: Path,
    worker: str = "0",
    *,
    run: Mapping[str, Any] | None = None,
    token: str = "",
) -> Path:
    """Writes samples of a run into the folder, under a name that no other worker can choose.

    `run`: what `read_part_header` returns again; `token`: see `write_archive`.
    """
    ids_of(data)
    datasets = datasets_of(data)
    kind = "dataset" if isinstance(data, xr.Dataset) else "tree"
    attrs = {KIND: kind} if run is None else {KIND: kind, RUN: json.dumps(run)}
    datasets["/"] = datasets["/"].assign_attrs(attrs)
    path = folder / f"part-{worker}-{time.time_ns()}-{secrets.token_hex(4)}{SUFFIX}"
    write_archive(path, chunks_of(datasets), token)
    return path


def read_part(path: Path) -> Labelled:
    """The part, in memory. Raises ProbeError when the file is damaged."""
    return labelled(read_nodes(path)).copy(deep=True)  # the decoder's arrays are read-only


def labelled(nodes: Mapping[str, Node]) -> Labelled:
    """The dataset or the tree that was written as these nodes."""
    attrs = dict(nodes["/"].attrs)
    kind = attrs.pop(KIND, "tree")
    attrs.pop(RUN, None)
    datasets = {path: node.dataset() for path, node in nodes.items()}
    datasets["/"].attrs = attrs
    return datasets["/"] if kind == "dataset" else xr.DataTree.from_dict(datasets)


def read_nodes(path: Path) -> dict[str, Node]:
    """The part as nodes by path, the root with what `write_part` added to its attrs. Raises
    ProbeError when the file is damaged.
    """
    try:
        chunks = read_archive(path, largest=float("inf"))
        try:
            return decoded(chunks)
        except (UndecodableError, LookupError, TypeError, RuntimeError):
            return {name: Node.of(dataset) for name, dataset in from_zarr(store_of(chunks)).items()}
    except Exception as error:
        raise _part_error(path, error) from None


def read_part_header(path: Path) -> tuple[list[str], dict[str, Any], dict[str, dict[str, int]]]:
    """The ids in a part, the `run` it was written with ({} in a file from before there was any)
    and the lengths of the dimensions by node. Raises ProbeError when any of the file is damaged.
    """
    nodes = read_nodes(path)
    try:
        run = json.loads(nodes["/"].attrs.get(RUN, "{}"))
        ids = [str(name) for name in nodes["/"].variables[SAMPLE].values]
        return ids, run, sizes_of(nodes)
    except Exception as error:
        raise _part_error(path, error) from None


def read_ids(path: Path) -> list[str]:
    """The ids in a part. Raises ProbeError when any of the file is damaged."""
    return read_part_header(path)[0]


class DamagedPartError(ProbeError):
    """A part whose content is not what was written."""

    def __init__(self, path: Path, reason: str):
        self.path = path
        self.reason = reason
        super().__init__(
            "run",
            expected=f"a whole part in {path}",
            got=f"a damaged one ({reason})",
            fix="give the command of the run again: its samples are computed again",
        )


def _part_error(path: Path, error: Exception) -> ProbeError:
    is_misplaced = isinstance(error, OSError) and error.errno == errno.EINVAL  # a damaged offset
    if isinstance(error, OSError | MemoryError) and not is_misplaced:  # the file may be whole
        return ProbeError(
            "run", expected=f"a part that can be read in {path}", got=reason_of(error)
        )
    return DamagedPartError(path, reason_of(error))
