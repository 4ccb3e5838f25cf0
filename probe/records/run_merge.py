"""The parts of a run as one: in memory, part by part, or in a zarr folder.

    load(parts, order)                          # all samples, first those in `order`
    compact(folder, token, parts, order)        # final.zarr, a block of samples at a time

A part is read once as long as the order is roughly that in which samples were computed; at most
`READ_AHEAD` parts are in memory at once.
"""

import os
import secrets
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import xarray as xr
import zarr

from probe.records.concat import SAMPLE, Labelled, datasets_of, ids_of, join, select
from probe.records.io import read_part
from probe.records.run_parts import Part
from probe.records.run_settings import report

READ_AHEAD = 16  # parts in memory at once while a run is put in order
BLOCK = 256  # samples that are joined at once
OWNER = ".probe-run"  # file in final.zarr with the token of the run that wrote it


def stream(parts: Iterable[Path]) -> Iterator[Labelled]:
    """One part after the other; a sample that two parts contain comes once."""
    seen: set[str] = set()
    for path in parts:
        part = read_part(path)
        ids = ids_of(part)
        new = [row for row, name in enumerate(ids) if name not in seen]
        seen.update(ids)
        if new:
            yield select(part, new)


def load(parts: Sequence[Part], order: Iterable[str] = ()) -> Labelled:
    """All samples in memory: first those in `order`, then any others."""
    return join(list(_blocks(parts, order, BLOCK)))


def compact(
    folder: Path, token: str, parts: Sequence[Part], order: Iterable[str] = (), block: int = BLOCK
) -> Path:
    """Writes all samples to `final.zarr` in the folder, `block` at a time, and returns its path.

    What lies there and was not written by the run of this token is renamed, never removed.
    """
    final = folder / "final.zarr"
    temporary, old = (folder / f"final-{token}{secrets.token_hex(4)}.tmp" for _ in range(2))
    try:
        for number, data in enumerate(_blocks(parts, order, block)):
            for path, dataset in datasets_of(data).items():
                _append(dataset, temporary, path, first=number == 0)
        with warnings.catch_warnings():
            # zarr: consolidated metadata is not in its specification yet
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(temporary)
        (temporary / OWNER).write_text(token, encoding="utf-8")
        if is_own(final, token):
            os.replace(final, old)
        elif os.path.lexists(final):
            kept = final.with_name(f"{final.name}.kept-{secrets.token_hex(4)}")
            os.replace(final, kept)
            report(f"{final} was not written by this run: renamed to {kept.name}")
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return final


def is_own(final: Path, token: str) -> bool:
    """Whether it is a folder that the run of this token wrote."""
    try:
        owner = (final / OWNER).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return owner.rstrip("-") == token.rstrip("-") and not final.is_symlink()


def _blocks(parts: Sequence[Part], order: Iterable[str], block: int) -> Iterator[Labelled]:
    """The samples in order, `block` at a time, all with the same lengths along ragged
    dimensions.
    """
    place: dict[str, tuple[Path, int]] = {}  # of a sample: the first part that contains it
    for part in parts:
        for row, name in enumerate(part.ids):
            place.setdefault(name, (part.path, row))
    wanted = [name for name in dict.fromkeys([*order, *place]) if name in place]
    # parts without samples: what all samples share, and the longest ragged dimensions
    skeleton = join([read_part(part.path, slice(0, 0)) for part in parts])
    opened = lru_cache(maxsize=READ_AHEAD)(read_part)
    for start in range(0, len(wanted), block):
        names = wanted[start : start + block]
        rows: dict[Path, list[int]] = {}
        for name in names:
            path, row = place[name]
            rows.setdefault(path, []).append(row)
        data = join([skeleton, *(select(opened(path), taken) for path, taken in rows.items())])
        position = {name: row for row, name in enumerate(ids_of(data))}
        yield select(data, [position[name] for name in names])


def _append(dataset: xr.Dataset, folder: Path, path: str, first: bool) -> None:
    """Writes samples into a node of a zarr folder; variables without samples only the first
    time.
    """
    if first:
        dataset.to_zarr(folder, group=path, mode="a", zarr_format=3, consolidated=False)
        return
    fixed = [name for name, each in dataset.variables.items() if SAMPLE not in each.dims]
    samples = dataset.drop_vars(fixed)
    samples.to_zarr(folder, group=path, append_dim=SAMPLE, consolidated=False)
