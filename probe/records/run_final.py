"""`final.zarr`, the merged samples of a run: who wrote it, of which parts, and whether it is as it
was written.

    write_owner(folder, token, kind="tree", content=content_of(parts, order))
    read_owner(folder, token)               # {} for a folder that another run, or a user, wrote
    read_final(run_folder, token, parts)    # None unless it holds just these parts
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from probe.records.concat import Labelled
from probe.records.provenance import content_hash
from probe.records.run_index import Part
from probe.records.zarr_store import from_zarr

OWNER = ".probe-run"  # file in final.zarr


def content_of(parts: Iterable[Part], order: Iterable[str]) -> list[str]:
    """Hashes of which parts are merged, and in which order of samples."""
    files = [f"{part.name} {part.size} {part.time}" for part in parts]
    return [content_hash("\n".join(names), length=32) for names in (files, order)]


def write_owner(folder: Path, token: str, kind: str, content: Sequence[str]) -> None:
    """Notes in a finished folder what it is, with a checksum of its files."""
    facts = {"token": token, "kind": kind, "content": content, "sha256": _digest(folder)}
    (folder / OWNER).write_text(json.dumps(facts), encoding="utf-8")


def read_owner(final: Path, token: str) -> dict[str, Any]:
    """What `write_owner` noted; {} where it was not this run that wrote the folder."""
    try:
        text = "{}" if final.is_symlink() else (final / OWNER).read_text(encoding="utf-8")
        facts = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) and facts.get("token") == token else {}


def read_final(folder: Path, token: str, parts: Iterable[Part]) -> Labelled | None:
    """The merged samples, in memory. None where they are not those of these parts, or not as they
    were written.
    """
    final = folder / "final.zarr"
    facts = read_owner(final, token)
    if not facts or facts["content"][0] != content_of(parts, ())[0]:
        return None
    if facts["sha256"] != _digest(final):
        return None
    datasets = from_zarr(final)
    return datasets["/"] if facts["kind"] == "dataset" else xr.DataTree.from_dict(datasets)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name != OWNER:
            content = path.read_bytes()
            name = path.relative_to(folder).as_posix()
            digest.update(f"{len(name)} {name} {len(content)} ".encode())
            digest.update(content)
    return digest.hexdigest()
