"""Files of records: zarr v3 in a zip, read back exactly, never half-written.

    save_record(record, "record")              # record.zarr.zip
    open_record("record")

A file is written under another name, flushed to the disk and renamed, so it is complete or does not
exist. It carries a checksum, which is compared when it is read. Equal contents give equal bytes.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from probe.errors import ProbeError, reason_of, shown
from probe.records.archive import LARGEST, SUFFIX, TooLargeError, read_archive, write_archive
from probe.records.schema import ROOT, STACK
from probe.records.validate import tree_of, validate
from probe.records.zarr_store import chunks_of, restored, store_of, tree_in


def save_record(record: xr.DataTree | xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write the record as one file and return its path; a name without a suffix gets `.zarr.zip`.

    A dataset with `kind` in its attrs (an attribution, a logit lens) is written in the same way.
    The file appears whole or not at all. Raises ProbeError for what is not a record or breaks its
    contract, for a variable that a file can't hold, and for a path that can't be written.
    """
    if isinstance(record, xr.Dataset) and "kind" in record.attrs:
        record = xr.DataTree(record)
    else:
        record = validate(record)
    fix = "choose a file in a folder that you can write to"
    if not isinstance(path, str | os.PathLike):
        raise ProbeError("record.save", expected="a path of a file", got=shown(path), fix=fix)
    path = Path(path)
    if os.path.isdir(path):  # Path.is_dir raises for names that are too long
        raise ProbeError(
            "record.save", expected="a path of a file", got=f"the folder {str(path)!r}", fix=fix
        )
    path = path if path.suffix else path.with_name(path.name + SUFFIX)
    datasets = {
        name: node.to_dataset(inherit=False).drop_encoding()
        for name, node in record.subtree_with_keys
    }
    chunks = chunks_of(datasets)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_archive(path, chunks)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        strerror = getattr(error, "strerror", None)
        reason = "its folder is a file" if isinstance(error, FileExistsError) else strerror or error
        raise ProbeError(
            "record.save",
            expected="a path that can be written",
            got=f"{str(path)!r} ({reason})",
            fix=fix,
        ) from None
    return path


def save_merged(folder: Path, path: Path) -> None:
    """Writes `final.zarr` of a run as one file, which `open_record` reads; a chunk of it at a time
    is in memory.
    """
    write_archive(path, _FilesOf(folder))


class _FilesOf(Mapping[str, bytes]):
    """The files of a zarr folder by their paths in it, read when they are asked for."""

    def __init__(self, folder: Path):
        files = (path for path in folder.rglob("*") if path.is_file())
        names = (path.relative_to(folder).as_posix() for path in files)
        self.folder = folder
        self.names = sorted(name for name in names if not name.startswith("."))

    def __getitem__(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def open_record(path: str | os.PathLike[str], *, largest: float = LARGEST) -> Any:
    """The record (or the dataset) that `save_record` wrote, read into memory; a record is
    validated.

    Raises ProbeError for a path where no record is, for a damaged file, for one that breaks the
    contract, and, before anything is allocated, for one that declares more than `largest` bytes.
    """
    try:
        path = Path(path)
        if not path.suffix and not os.path.exists(path):
            path = path.with_name(path.name + SUFFIX)
        opened = tree_in(store_of(read_archive(path, largest))).load()
        if "kind" in opened.attrs:
            return restored(opened, {})
        stacks = {name: restored(node, STACK) for name, node in opened.children.items()}
        return validate(tree_of(restored(opened, ROOT), stacks, "record.open"))
    except Exception as error:  # zipfile, zarr and xarray raise a dozen kinds: not a record
        fix = "pass a file that probe.save_record wrote"
        if isinstance(error, TooLargeError):
            fix = "where you trust it, raise the bound: open_record(path, largest=bytes)"
        if isinstance(error, IsADirectoryError):
            fix = _of_folder(Path(path))
        got = f"{str(path)!r} ({reason_of(error)})"
        raise ProbeError("record.open", expected="a record (.zarr.zip)", got=got, fix=fix) from None


def _of_folder(folder: Path) -> str:
    """What to do with a folder instead: results hold their records as files."""
    held = sorted(file.name for file in folder.glob(f"*{SUFFIX}"))
    if held:
        return f"pass a file in it: {', '.join(held)}"
    reader = "probe.records.run_directory.RunDirectory(folder).load()"
    return f"the folder of a run is read by {reader}"
