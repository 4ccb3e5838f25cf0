"""The parts of a run as one: in memory, part by part, or in a zarr folder.

    compact(folder, token, parts, order)        # final.zarr, a block of samples at a time
    load(folder, token, parts, order)           # all samples, first those in `order`

    merged(folder, token, parts)                # final.zarr as one tree, left on the disk

A part is read once as long as the order is roughly that in which samples were computed; at
most about `READ_BYTES` of parts, and a block, are in memory at once.
"""

import json
import os
import secrets
import shutil
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
import zarr

from probe.records.concat import SAMPLE, Labelled, Node, Nodes, agreed, ids_of, join_nodes, select
from probe.records.part_files import KIND, OF_PARTS, labelled, read_nodes, read_part
from probe.records.run_final import content_of, read_final, read_owner, write_owner
from probe.records.run_index import Part
from probe.records.run_settings import report
from probe.records.zarr_store import left_on_disk

READ_BYTES = 256_000_000  # of parts in memory at once while a run is put in order
READ_AHEAD = (16, 256)  # parts, at least and at most
BLOCK = 256  # samples that are joined at once, and are a chunk of final.zarr, at most
BLOCK_BYTES = 32_000_000  # that they take, about


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


def load(folder: Path, token: str, parts: Sequence[Part], order: Iterable[str] = ()) -> Labelled:
    """All samples in memory: first those in `order`, then any others. Of `final.zarr` where it
    holds just these parts and is as it was written.
    """
    order = list(order)
    merged = read_final(folder, token, parts)
    if merged is None:
        return labelled(join_nodes(list(_blocks(parts, order, BLOCK))))
    position = {name: row for row, name in enumerate(ids_of(merged))}
    wanted = [name for name in dict.fromkeys([*order, *position]) if name in position]
    return select(merged, [position[name] for name in wanted])


def merged(folder: Path, token: str, parts: Sequence[Part]) -> xr.DataTree | None:
    """`final.zarr` where it holds just these parts: its variables are read when they are used, and
    not kept.
    """
    final = folder / "final.zarr"
    content = read_owner(final, token).get("content")
    return left_on_disk(final) if content and content[0] == content_of(parts, ())[0] else None


def compact(
    folder: Path,
    token: str,
    parts: Sequence[Part],
    order: Iterable[str] = (),
    block: int | None = None,
) -> Path:
    """Writes all samples to `final.zarr` in the folder, `block` at a time, and returns its path:
    at once where it holds just these parts in this order.

    What lies there and was not written by the run of this token is renamed, never removed.
    """
    final = folder / "final.zarr"
    order = list(order)
    content = content_of(parts, order)
    if read_owner(final, token).get("content") == content:
        return final
    temporary, old = (folder / f"final-{token}{secrets.token_hex(4)}.tmp" for _ in range(2))
    try:
        block = block or _block_of(parts)
        kind = _write_blocks(_blocks(parts, order, block), temporary)
        write_owner(temporary, token, kind, content)
        if read_owner(final, token):
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


def _block_of(parts: Sequence[Part]) -> int:
    """How many samples are joined at once, by the size of those of the first part."""
    first = next(part for part in parts if part.ids)
    size = 0
    for node in read_nodes(first.path).values():
        of_samples = [variable for variable in node.variables.values() if SAMPLE in variable.dims]
        size += sum(variable.nbytes for variable in of_samples)
    sample_size = max(size / len(first.ids), 1)
    return max(1, min(BLOCK, int(BLOCK_BYTES / sample_size)))


def _blocks(parts: Sequence[Part], order: Iterable[str], block: int) -> Iterator[Nodes]:
    """The samples in order, `block` at a time, all with the same lengths along ragged
    dimensions.
    """
    place: dict[str, tuple[Path, int]] = {}  # of a sample: the first part that contains it
    for part in parts:
        for row, name in enumerate(part.ids):
            place.setdefault(name, (part.path, row))
    wanted = [name for name in dict.fromkeys([*order, *place]) if name in place]
    sizes = _longest({part.lengths for part in parts})
    opened = _OpenParts(Counter(path for path, _ in place.values()), parts)
    for start in range(0, len(wanted), block):
        in_block = wanted[start : start + block]
        rows: dict[Path, list[int]] = {}
        for name in in_block:
            path, row = place[name]
            rows.setdefault(path, []).append(row)
        chosen: list[Nodes] = []
        names: list[str] = []  # in the order in which they are joined
        for path, taken in rows.items():
            nodes = {where: node.rows(taken) for where, node in opened.nodes(path).items()}
            chosen.append(nodes)
            names += [str(name) for name in nodes["/"].variables[SAMPLE].values]
            opened.have_taken(path, len(taken))
        position = {name: row for row, name in enumerate(names)}
        in_order = [position[name] for name in in_block]
        joined = join_nodes(chosen, sizes)
        yield {where: node.rows(in_order) for where, node in joined.items()}


class _OpenParts:
    """Parts in memory: until all of their samples are taken, or too many are open."""

    def __init__(self, samples: Counter[Path], parts: Sequence[Part]):
        """`samples`: how many will be taken of each part."""
        self._left = samples
        self._open: dict[Path, Nodes] = {}
        fit = READ_BYTES // max(1, *(part.size for part in parts))
        self._at_most = min(max(fit, READ_AHEAD[0]), READ_AHEAD[1])

    def nodes(self, path: Path) -> Nodes:
        found = self._open.pop(path, None) or read_nodes(path)
        self._open[path] = found  # the last one
        if len(self._open) > self._at_most:
            del self._open[next(iter(self._open))]
        return found

    def have_taken(self, path: Path, count: int) -> None:
        self._left[path] -= count
        if not self._left[path]:
            self._open.pop(path, None)


def _longest(lengths: Iterable[str]) -> dict[str, dict[str, int]]:
    """The greatest length of each dimension of each node, in JSON of `Part.lengths`."""
    longest: dict[str, dict[str, int]] = {}
    for text in lengths:
        for where, sizes in json.loads(text).items():
            known = longest.setdefault(where, {})
            for dim, size in sizes.items():
                known[dim] = max(size, known.get(dim, 0))
    return longest


def _array(folder: Path, where: str, name: Hashable) -> zarr.Array:
    return zarr.open_array(folder / where.strip("/") / str(name), mode="r+")


def _chunks_of(node: Node) -> dict[Hashable, dict[str, tuple[int, ...]]]:
    """Encodings by which what a node holds of the first block is one chunk of each variable."""
    return {
        name: {"chunks": tuple(max(1, size) for size in variable.shape)}
        for name, variable in node.variables.items()
        if SAMPLE in variable.dims
    }


def _write_blocks(blocks: Iterable[Nodes], folder: Path) -> str:
    """Writes samples into a zarr folder, and returns their kind, "dataset" or "tree". A chunk has
    the samples of a block and is whole in the other dimensions. Variables
    without samples must agree where blocks have values; they are written as the block with most
    values has them.
    """
    kind = "tree"
    fixed: dict[tuple[str, Hashable], list[np.ndarray]] = {}
    for number, nodes in enumerate(blocks):
        for where, node in nodes.items():
            for name, variable in node.variables.items():
                if SAMPLE not in variable.dims:
                    seen = fixed.setdefault((where, name), [])
                    seen[:] = [agreed("run", name, [*seen, variable.values])]
        if number == 0:
            kind = nodes["/"].attrs.get(KIND, kind)
            tree = xr.DataTree.from_dict({w: node.dataset() for w, node in nodes.items()})
            tree["/"].attrs = {n: v for n, v in tree.attrs.items() if n not in OF_PARTS}
            chunks = {where: _chunks_of(node) for where, node in nodes.items()}
            tree.to_zarr(folder, mode="w-", zarr_format=3, consolidated=False, encoding=chunks)
            continue
        for where, node in nodes.items():
            for name, variable in node.variables.items():
                if SAMPLE in variable.dims:
                    array = _array(folder, where, name)
                    array.append(variable.values, axis=variable.dims.index(SAMPLE))
    for (where, name), (values,) in fixed.items():
        _array(folder, where, name)[...] = values
    with warnings.catch_warnings():
        # zarr: consolidated metadata is not in its specification yet
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(folder)
    return kind
