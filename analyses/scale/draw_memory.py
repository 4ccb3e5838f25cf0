"""Memory and time of the end of `probe attention --benchmark`: merging, figures, table and record.

    python analyses/scale/draw_memory.py --samples 1000 5000 20000
    python analyses/scale/draw_memory.py --samples 4000 --layers 32 --heads 32

Parts of 64 samples, shaped as a run writes them, with numbers of one kind of sample drawn at random.
Prints for each number of samples, of a process of its own: the peak memory in MiB, and seconds of
CPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr
from merge_time import FINGERPRINT, cpu, peak_memory
from numcodecs import VLenUTF8, Zstd

from probe.cli.attention import show_layers, write_results
from probe.cli.result_folder import results
from probe.records import assemble
from probe.records.archive import read_archive, write_archive
from probe.records.part_files import write_part
from probe.records.run_directory import RunDirectory
from probe.records.run_settings import settings_of

TYPES = ["instruction", "vision", "response"]
PART = 64
QUESTIONS = 32  # about one image, as in GQA


def part_of(layers: int, heads: int) -> xr.DataTree:
    """A record of `PART` samples as a run keeps it: without patches."""
    rng = np.random.default_rng(0)
    of_head = (PART, layers, heads, 3, 3)
    of_layer = (PART, layers, 3, 3)
    count = np.tile([[[40, 40, 40], [0, 576, 0], [6, 6, 6]]], (PART, 1, 1))
    share = rng.dirichlet(np.ones(3), of_head[:-1])
    hidden = np.broadcast_to((count == 0)[:, None, None], of_head)
    mass = np.where(hidden, np.nan, np.where(hidden.any(-1, keepdims=True), 1, share))
    of_heads = {
        name: np.where(hidden, np.nan, rng.random(of_head))
        for name in ("lift", "head_entropy", "head_entropy_ratio")
    }
    pooled = {
        name: np.where(hidden[:, :, 0], np.nan, rng.random(of_layer))
        for name in ("entropy", "entropy_ratio")
    }
    llm = {
        "query_type": TYPES,
        "key_type": TYPES,
        "mass": mass,
        "share": share,
        "head_entropy_count": np.broadcast_to(count[:, None, None], of_head),
        "entropy_count": np.broadcast_to(count[:, None], of_layer),
        "query_count": count,
        "share_count": count[:, :, 1],
        "key_count": np.tile([40, 576, 6], (PART, 1)),
        **of_heads,
        **pooled,
    }
    texts = {name: [f"a {name} " * 10] * PART for name in ("question", "prompt", "response")}
    texts |= {"image_path": ["0.jpg"] * PART, "image_sha256": [["0" * 64]] * PART}
    ids = [f"question-{number:06d}" for number in range(PART)]
    return assemble({"sample": ids, **texts}, {"llm": llm}, {"model": "none"})


def write_run(folder: Path, count: int, layers: int, heads: int) -> None:
    """A run of parts that differ in the ids of their samples and in their images."""
    RunDirectory.open(folder, FINGERPRINT)
    path = write_part(part_of(layers, heads), folder / "parts", run=settings_of(FINGERPRINT))
    chunks = read_archive(path)
    path.unlink()
    for start in range(0, count, PART):
        numbers = range(start, start + PART)
        chunks["sample/c/0"] = _texts(f"question-{number:06d}" for number in numbers)
        chunks["image_sha256/c/0/0"] = _texts(f"{number // QUESTIONS:064d}" for number in numbers)
        write_archive(folder / "parts" / f"part-0-{start:09d}-0.zarr.zip", chunks)


def _texts(texts) -> bytes:
    return Zstd().encode(VLenUTF8().encode(np.array(list(texts), dtype=object)))


def measured(folder: Path) -> dict[str, float]:
    """CPU seconds of the merge and of all that is drawn and written, and the peak memory in MiB."""
    start = cpu()
    run = RunDirectory(folder)
    final = run.compact()
    merged = cpu()
    record = run.merged()
    assert isinstance(record, xr.DataTree)
    with results("attention", folder) as written:
        write_results(record, written, "main", final)
    show_layers(record)
    return {"merge": merged - start, "draw": cpu() - merged, "memory": peak_memory()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--samples", type=int, nargs="+", default=[1000, 5000, 20000])
    arguments.add_argument("--layers", type=int, default=16)
    arguments.add_argument("--heads", type=int, default=8)
    arguments.add_argument("--step", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.step:
        print(json.dumps(measured(given.step)))
        return
    print(f"{given.layers} layers, {given.heads} heads")
    print("samples  merge (s)  figures, table, record (s)  peak memory (MiB)", flush=True)
    for count in given.samples:
        with tempfile.TemporaryDirectory() as name:
            write_run(Path(name), count, given.layers, given.heads)
            command = [sys.executable, __file__, "--step", name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{count:7d}  {found['merge']:9.1f}  {found['draw']:26.1f}  {found['memory']:17.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
