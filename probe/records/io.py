"""A record as one file: zarr v3 in a zip, read back exactly, never half-written."""

import os
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from zarr.storage import MemoryStore, ZipStore

from probe.errors import ProbeError
from probe.records.schema import ROOT, STACK, Variable
from probe.records.validate import tree_of, validate

SUFFIX = ".zarr.zip"


def save_record(record: xr.DataTree | xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write the record as one file and return its path; a name without a suffix gets `.zarr.zip`.

    A dataset that says what it is (`kind` in its attrs: an attribution, a logit lens) is written in
    the same way. The file appears whole or not at all: it is written beside its place, synced and
    renamed. Raises ProbeError for what is no record or breaks its contract, for a variable that a
    file can't hold, and for a path that can't be written.
    """
    record = (
        xr.DataTree(record)
        if isinstance(record, xr.Dataset) and "kind" in record.attrs
        else validate(record)
    )
    fix = "choose a file in a folder that you can write to"
    if not isinstance(path, str | os.PathLike):
        raise ProbeError("record.save", expected="a path of a file", got=repr(path)[:60], fix=fix)
    path = Path(path)
    if os.path.isdir(path):  # Path.is_dir raises for names that are too long
        raise ProbeError(
            "record.save", expected="a path of a file", got=f"the folder {str(path)!r}", fix=fix
        )
    path = path if path.suffix else path.with_name(path.name + SUFFIX)
    chunks = _chunks(record)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, chunks)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        strerror = getattr(error, "strerror", None)
        reason = "its folder is a file" if isinstance(error, FileExistsError) else strerror or error
        got = f"{str(path)!r} ({reason})"
        raise ProbeError(
            "record.save", expected="a path that can be written", got=got, fix=fix
        ) from None
    return path


def _chunks(record: xr.DataTree) -> dict[str, bytes]:
    """The zarr store as bytes. Not into a zip directly: zarr writes its metadata twice, a zip keeps
    both.
    """
    chunks: dict[str, Any] = {}
    plain = {
        path: node.to_dataset(inherit=False).drop_encoding()
        for path, node in record.subtree_with_keys
    }
    store = MemoryStore(chunks)
    try:
        xr.DataTree.from_dict(plain).to_zarr(store, zarr_format=3, consolidated=False)
    except (
        TypeError,
        ValueError,
    ) as error:  # a variable of the user's own, which xarray names in a note
        note = next(iter(getattr(error, "__notes__", [])), "").split(" with value")[0]
        raise ProbeError(
            "record.save", expected="numbers or strings", got=f"{error}", fix=note
        ) from None
    return {key: chunk.to_bytes() for key, chunk in sorted(chunks.items())}


def _write_whole(path: Path, chunks: Mapping[str, bytes]) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with partial.open("xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for (
                    key,
                    content,
                ) in chunks.items():  # the chunks are compressed already, the metadata is not
                    packed = zipfile.ZIP_DEFLATED if key.endswith(".json") else zipfile.ZIP_STORED
                    archive.writestr(
                        zipfile.ZipInfo(key), content, packed
                    )  # no clock: equal records, equal bytes
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_record(path: str | os.PathLike[str]) -> Any:
    """The record (or the dataset) that `save_record` wrote, read into memory; a record is
    validated.

    Raises ProbeError for a path where no record is, for a damaged file, and for one that breaks the
    contract.
    """
    try:
        path = Path(path)
        if not path.suffix and not os.path.exists(path):
            path = path.with_name(path.name + SUFFIX)
        opened = _read(path)
        if "kind" in opened.attrs:
            return _restored(opened, {})
        nodes = {name: _restored(node, STACK) for name, node in opened.children.items()}
        return validate(tree_of(_restored(opened, ROOT), nodes, "record.open"))
    except (
        Exception
    ) as error:  # zipfile, zarr and xarray raise a dozen kinds, and all mean this one thing
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        got, fix = f"{str(path)!r} ({reason})", "pass a file that probe.save wrote"
        raise ProbeError("record.open", expected="a record (.zarr.zip)", got=got, fix=fix) from None


def _read(path: Path) -> xr.DataTree:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"damaged at {damaged}")
    raw: dict[str, Any] = {"chunks": None, "decode_times": False, "decode_timedelta": False}
    with ZipStore(path, mode="r") as store:
        return xr.open_datatree(store, engine="zarr", consolidated=False, **raw).load()  # pyright: ignore


def _restored(node: xr.DataTree, table: Mapping[str, Variable]) -> xr.Dataset:
    """As it was saved: zarr keeps no order, has strings of its own type, and knows no type of empty
    arrays.
    """
    dataset = node.to_dataset(inherit=False).drop_encoding()
    for name, variable in dataset.variables.items():
        if name in table:
            dataset[name] = variable.astype(table[str(name)].dtype)
        elif variable.dtype.kind == "T":
            dataset[name] = variable.astype(object)
    known = [name for name in table if name in dataset.data_vars]
    return dataset[known + sorted(map(str, dataset.data_vars.keys() - set(known)))]
