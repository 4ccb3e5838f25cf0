"""How long a large run takes to start and to end: one-sample parts, shaped as `probe drop` of a model
of 32 layers writes them.

    python analyses/scale/merge_time.py --samples 1000 4000 12578

Prints for each number of samples, in seconds of CPU: a start with and without the index, the merge
to `final.zarr`, the same command again, and the peak memory of the process that merges.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
from numcodecs import VLenUTF8, Zstd

from probe.data.sample import Sample
from probe.records.archive import read_archive, write_archive
from probe.records.part_files import write_part
from probe.records.provenance import RunFingerprint
from probe.records.run_directory import RunDirectory
from probe.records.run_settings import settings_of

MODES, CASES, LAYERS = 6, 12, 32
FINGERPRINT = RunFingerprint("none", "0", "float32", "none", "none", plan="merge time", data={})


def sample_tree() -> xr.DataTree:
    """One sample in every case of every mode, with attention by layer, as a drop run has it."""
    rng = np.random.default_rng(0)
    ids = {"sample": np.array(["0"], dtype=object)}
    texts = ("image", "kind", "unit", "question", "gold")
    root = {name: ("sample", np.array([f"a {name} of a benchmark"], object)) for name in texts}
    numbers = ("correct", "gold_logprob", "kl", "total_variation", "first_token_changed")
    table = {name: (("sample", "case"), rng.random((1, CASES), np.float32)) for name in numbers}
    answers = np.array([[f"answer {case}" for case in range(CASES)]], dtype=object)
    table |= {"answer": (("sample", "case"), answers)}
    table |= {"dropped": (("case", "layer"), rng.random((CASES, LAYERS)) < 0.1)}
    cases = {"case": np.array([f"{start}-{start + 4}" for start in range(CASES)], dtype=object)}
    attended = {
        name: (("sample", "layer", "query_type"), rng.random((1, LAYERS, 3), np.float32))
        for name in ("mass", "share", "lift")
    }
    nodes = {f"mode {number}": xr.Dataset(table, cases) for number in range(MODES)}
    nodes |= {"/": xr.Dataset(root, ids), "attention": xr.Dataset(attended)}
    return xr.DataTree.from_dict(nodes)


def write_run(folder: Path, count: int) -> list[str]:
    """A run of `count` parts that differ in the id of their sample; returns the ids."""
    RunDirectory.open(folder, FINGERPRINT)
    path = write_part(sample_tree(), folder / "parts", run=settings_of(FINGERPRINT))
    chunks = read_archive(path)
    path.unlink()
    ids = [f"question-{number:06d}" for number in range(count)]
    for number, name in enumerate(ids):
        chunks["sample/c/0"] = Zstd().encode(VLenUTF8().encode(np.array([name], dtype=object)))
        write_archive(folder / "parts" / f"part-0-{number:09d}-0.zarr.zip", chunks)
    return ids


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_memory() -> float:
    """Of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(folder: Path, step: str, count: int) -> dict[str, float]:
    """CPU seconds of one step, and the peak memory in MiB, in this process."""
    samples = [Sample(f"question-{number:06d}", None, "?") for number in range(count)]
    start = cpu()
    run = RunDirectory.open(folder, FINGERPRINT)
    left = run.todo(samples)
    assert not left, f"{len(left)} samples are not done"
    if step == "merge":
        run.compact([sample.id for sample in samples])
    return {"seconds": cpu() - start, "memory": peak_memory()}


def in_own_process(folder: Path, step: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", step, str(folder), "--samples", str(count)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--samples", type=int, nargs="+", default=[1000, 4000])
    arguments.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.step:
        step, folder = given.step
        print(json.dumps(measured(Path(folder), step, given.samples[0])))
        return
    print("samples  start without index  start  merge  again  peak memory (MiB)", flush=True)
    for count in given.samples:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            begun = time.monotonic()
            write_run(folder, count)
            print(f"({count} parts written in {time.monotonic() - begun:.0f} s)", file=sys.stderr)
            steps = [in_own_process(folder, step, count) for step in ("start", "start")]
            steps += [in_own_process(folder, "merge", count) for _ in range(2)]
            without, start, merge, again = (step["seconds"] for step in steps)
            print(
                f"{count:7d}  {without:19.2f}  {start:5.2f}  {merge:5.1f}  {again:5.2f}  "
                f"{steps[2]['memory']:17.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
