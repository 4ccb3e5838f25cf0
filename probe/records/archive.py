"""A zarr store as one zip file: never half-written, with a checksum of its content, and read only
up to a stated size.

    write_archive(path, chunks)          # {"zarr.json": b"...", "mass/c/0/0": b"..."}
    read_archive(path) == chunks         # or ValueError: damaged, or larger than allowed

The checksum covers the names and the contents of all members. It is an attribute of the root group,
so a copy of the file by another program keeps it; files written before there were checksums have
none and are read without one.
"""

import hashlib
import json
import math
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SUFFIX = ".zarr.zip"
CHECKSUM = "probe_sha256"  # attribute of the root group
ROOT_METADATA = "zarr.json"
LARGEST = 1 << 30  # bytes that a file may declare, for its chunks and for its arrays
TEXT_BYTES = 64  # of a string whose length the metadata does not give
CODECS = {"bytes", "vlen-utf8", "vlen-bytes", "zstd", "crc32c", "transpose"}
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class TooLargeError(ValueError):
    """A file that declares more than it may."""

    def __init__(self, what: str, size: float, largest: float):
        super().__init__(f"{what} declare {size:.3g} bytes, more than {largest:.3g}")


def write_archive(path: Path, chunks: Mapping[str, bytes], token: str = "") -> None:
    """Writes a zip file that appears whole or not at all. Equal chunks give equal bytes.

    `token` is part of the temporary name, by which a run recognizes files of its own.
    """
    partial = path.with_name(f".{path.name}.{token}{uuid.uuid4().hex[:8]}.tmp")
    try:
        with partial.open("xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for key, content in _with_checksum(chunks):
                    # chunks are compressed already, metadata is not
                    packed = zipfile.ZIP_DEFLATED if key.endswith(".json") else zipfile.ZIP_STORED
                    # ZipInfo has no clock: equal records, equal bytes
                    archive.writestr(zipfile.ZipInfo(key), content, packed)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    flush_folder(path.parent)


def read_archive(path: Path, largest: float = LARGEST) -> dict[str, bytes]:
    """The chunks of a zip file.

    Raises ValueError or another error of `zipfile` for a file that is damaged, and TooLargeError,
    before anything is allocated, for one whose members or arrays declare more than `largest` bytes.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _bounded("its members", sum(member.file_size for member in members), largest)
        chunks = {member.filename: archive.read(member) for member in members}
    if len(chunks) < len(members):
        raise ValueError("a member occurs twice")
    metadata = {key: json.loads(chunks[key]) for key in chunks if _is_metadata(key)}
    root = metadata.get(ROOT_METADATA)
    if not isinstance(root, dict):
        raise ValueError("it holds no zarr group")
    checksum = root.get("attributes", {}).pop(CHECKSUM, None)
    chunks[ROOT_METADATA] = _as_json(root)
    if checksum is not None and checksum != _digest(chunks, chunks[ROOT_METADATA]):
        raise ValueError("damaged: its content is not what its checksum says")
    arrays = [node for node in metadata.values() if node.get("node_type") == "array"]
    _bounded("its arrays", sum(map(_declared_size, arrays)), largest)
    packed = [_unpacked_size(chunks[key]) for key in chunks if not _is_metadata(key)]
    _bounded("its chunks", sum(packed), largest)
    return chunks


def flush_folder(folder: Path) -> None:
    """Makes a rename inside the folder survive a power cut."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _with_checksum(chunks: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """The chunks one after the other, as they may not all fit into memory."""
    root = json.loads(chunks[ROOT_METADATA])
    root["attributes"] = root.get("attributes", {}) | {
        CHECKSUM: _digest(chunks, _as_json(root)),
    }
    for key in chunks:
        yield key, _as_json(root) if key == ROOT_METADATA else chunks[key]


def _digest(chunks: Mapping[str, bytes], root: bytes) -> str:
    """Of all names and contents, with `root` as the metadata of the root group."""
    digest = hashlib.sha256()
    for key in sorted(chunks):
        content = root if key == ROOT_METADATA else chunks[key]
        digest.update(f"{len(key)} {key} {len(content)} ".encode("utf-8", "surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def _as_json(node: Any) -> bytes:
    return json.dumps(node, indent=2).encode()


def _is_metadata(key: str) -> bool:
    return key.rsplit("/", 1)[-1] == ROOT_METADATA


def _bounded(what: str, size: float, largest: float) -> None:
    if size > largest:
        raise TooLargeError(what, size, largest)


def _declared_size(array: dict[str, Any]) -> float:
    """Bytes that reading an array takes: all of it, or one chunk where that is larger."""
    codecs = {codec["name"] for codec in array["codecs"]}
    if not codecs <= CODECS:
        raise ValueError(f"it uses the codecs {sorted(codecs - CODECS)}, unknown to probe")
    whole = math.prod(map(int, array["shape"]))
    chunk = math.prod(map(int, array["chunk_grid"]["configuration"]["chunk_shape"]))
    return max(whole, chunk) * _item_size(array["data_type"])


def _item_size(data_type: str | dict[str, Any]) -> int:
    if isinstance(data_type, dict):
        return int(data_type.get("configuration", {}).get("length_bytes", TEXT_BYTES))
    try:
        return np.dtype(data_type).itemsize or TEXT_BYTES
    except TypeError:
        return TEXT_BYTES


def _unpacked_size(chunk: bytes) -> int:
    """Bytes of a chunk when decompressed, by the header of its zstd frame (RFC 8878, 3.1.1.1)."""
    if not chunk.startswith(ZSTD_MAGIC) or len(chunk) < 6:
        return len(chunk)
    descriptor = chunk[4]
    single_segment = descriptor >> 5 & 1
    size_bytes = (single_segment, 2, 4, 8)[descriptor >> 6]
    if not size_bytes:
        raise ValueError("damaged: a chunk that does not state its size")
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(chunk[start : start + size_bytes], "little")
    return size + 256 if size_bytes == 2 else size
