"""Files of records, and of the parts of a run: zarr v3 in a zip, read back exactly, never
half-written.

    save_record(record, "record")              # record.zarr.zip
    open_record("record")
    write_part(data, folder); read_part(path)  # some samples of a run

A file is written under another name, flushed to the disk and renamed, so it is complete or does not
exist. It carries a checksum, which is compared when it is read. Equal contents give equal bytes.
"""

import contextlib
import errno
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from probe.errors import ProbeError, shown
from probe.records.archive import (
    LARGEST,
    TooLargeError,
    flush_folder,
    read_archive,
    write_archive,
)
from probe.records.concat import SAMPLE, Labelled, Node, datasets_of, ids_of, sizes_of, with_text
from probe.records.part_decoder import UndecodableError, decoded
from probe.records.schema import ROOT, STACK, Variable
from probe.records.validate import tree_of, validate

SUFFIX = ".zarr.zip"
OLD_NAMES = {  # of variables, in files that were written before they were renamed
    "picture": "images",
    "picture_size": "image_size",
    "picture_sha256": "image_sha256",
}
KIND = "probe_kind"  # attr of a part's root in the file: whether it is a dataset or a tree
RUN = "probe_run"  # attr of a part's root in the file: fingerprint and versions, as JSON
OF_PARTS = (KIND, RUN)


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
    chunks = _chunks(datasets)
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
        opened = _tree_in(_store(read_archive(path, largest))).load()
        if "kind" in opened.attrs:
            return _restored(opened, {})
        stacks = {name: _restored(node, STACK) for name, node in opened.children.items()}
        return validate(tree_of(_restored(opened, ROOT), stacks, "record.open"))
    except Exception as error:  # zipfile, zarr and xarray raise a dozen kinds: not a record
        fix = "pass a file that probe.save_record wrote"
        if isinstance(error, TooLargeError):
            fix = "where you trust it, raise the bound: open_record(path, largest=bytes)"
        if isinstance(error, IsADirectoryError):
            reader = "probe.records.run_directory.RunDirectory(folder).load()"
            fix = f"the folder of a run is read by {reader}"
        got = f"{str(path)!r} ({reason_of(error)})"
        raise ProbeError("record.open", expected="a record (.zarr.zip)", got=got, fix=fix) from None


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
    write_archive(path, _chunks(datasets), token)
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
            return {name: Node.of(dataset) for name, dataset in from_zarr(_store(chunks)).items()}
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


def write_once(path: Path, value: Any) -> None:
    """Creates a JSON file with all its content, unless it exists: of two workers that start, one
    wins.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # unlike a rename this fails when the name is taken
    except OSError:  # a file system without hard links
        _copy_once(temporary, path)
    finally:
        temporary.unlink()
    flush_folder(path.parent)


def _copy_once(source: Path, path: Path) -> None:
    with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
        file.write(source.read_text(encoding="utf-8"))


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


def reason_of(error: BaseException) -> str:
    """What went wrong, in a few words: of the system's errors without number and path."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((reason or type(error).__name__).split())[:200]


def _chunks(datasets: Mapping[str, xr.Dataset]) -> dict[str, bytes]:
    """The zarr store as bytes. Not into a zip directly: zarr writes its metadata twice, a zip keeps
    both.
    """
    chunks: dict[str, Any] = {}
    store = MemoryStore(chunks)
    try:
        xr.DataTree.from_dict(datasets).to_zarr(store, zarr_format=3, consolidated=False)
    except (TypeError, ValueError) as error:  # a user's variable, which xarray names in a note
        note = next(iter(getattr(error, "__notes__", [])), "").split(" with value")[0]
        raise ProbeError(
            "record.save", expected="numbers or strings", got=f"{error}", fix=note
        ) from None
    return {key: chunk.to_bytes() for key, chunk in sorted(chunks.items())}


def _store(chunks: Mapping[str, bytes]) -> MemoryStore:
    buffer = default_buffer_prototype().buffer
    return MemoryStore({key: buffer.from_bytes(chunk) for key, chunk in chunks.items()})


def left_on_disk(store: Path) -> xr.DataTree:
    """A zarr folder of a tree, of which only the coordinates are in memory."""
    tree = _tree_in(store, cache=False)
    nodes = {}
    for node in tree.subtree:
        opened = node.to_dataset(inherit=False)
        labels = with_text(opened[[]].load().assign_coords(opened.coords).load())
        nodes[node.path] = opened.assign_coords(labels.coords)
    return xr.DataTree.from_dict(nodes)


def _tree_in(store: MemoryStore | Path, cache: bool = True) -> xr.DataTree:
    raw: dict[str, Any] = {"chunks": None, "decode_times": False, "decode_timedelta": False}
    raw["cache"] = cache
    raw["consolidated"] = isinstance(store, Path)  # the merged samples of a run
    return xr.open_datatree(store, engine="zarr", **raw)  # pyright: ignore


def from_zarr(store: MemoryStore | Path) -> dict[str, xr.Dataset]:
    """The datasets of a zarr store by path, in memory."""
    return {node.path: _restored(node, {}) for node in _tree_in(store).load().subtree}


def _restored(node: xr.DataTree, schema: Mapping[str, Variable]) -> xr.Dataset:
    """As it was saved: zarr does not keep the order of variables, and knows neither Python's
    strings nor the dtype of empty arrays.
    """
    dataset = with_text(node.to_dataset(inherit=False))
    dataset = dataset.rename({old: new for old, new in OLD_NAMES.items() if old in dataset})
    typed = {
        name: variable.astype(schema[str(name)].dtype)
        for name, variable in dataset.variables.items()
        if name in schema
    }
    dataset = dataset.assign(typed)
    known = [name for name in schema if name in dataset.data_vars]
    return dataset[known + sorted(map(str, dataset.data_vars.keys() - set(known)))]
