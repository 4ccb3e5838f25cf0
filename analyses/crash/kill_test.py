"""Kills a run at random times, again and again, and compares what it leaves with a run that nobody
disturbed.

    python analyses/crash/kill_test.py --kills 50 --samples 500
    python analyses/crash/kill_test.py --kills 60 --samples 300 --workers 2

The run measures nothing real: each sample's numbers follow from its id, so that two runs can be
compared to the bit. Everything else is what `probe drop` and `probe attention --benchmark` use:
`run_samples`, claims, parts, resume, compaction. With several workers, which torch's launcher
starts, a kill hits one of them, the launcher, or all. Exit code 0: every sample exactly once, all
numbers identical, no stray file counted.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import xarray as xr
from running_mean import RunningMean

from probe.cli.launcher import launcher_command
from probe.data.sample import Sample
from probe.records.part_files import read_ids
from probe.records.provenance import RunFingerprint
from probe.records.run_claims import Claims
from probe.records.run_directory import RunDirectory
from probe.records.run_work import run_samples

PART = 4  # samples: small, so that kills often hit the writing of a part
SECONDS = 0.003  # of work a sample
SAME = RunFingerprint(
    model="none", revision="0", dtype="float64", kernel="none", prompt="none", plan=PART, data={}
)


def samples_of(count: int) -> list[Sample]:
    return [Sample(f"question-{number:04d}", None, "?") for number in range(count)]


def measured(group: list[Sample]) -> xr.DataTree:
    """A tree with ragged tokens, as a record has, made up from the ids."""
    time.sleep(SECONDS * len(group))
    seeds = [np.random.default_rng(zlib.crc32(sample.id.encode())) for sample in group]
    ids = np.array([sample.id for sample in group], dtype=object)
    tokens = 3 + max(zlib.crc32(name.encode()) % 5 for name in ids)
    llm = xr.Dataset(
        {
            "mass": (("sample", "layer"), np.stack([rng.random(6) for rng in seeds])),
            "received": (("sample", "key"), np.stack([rng.random(tokens) for rng in seeds])),
        }
    )
    root = xr.Dataset(
        {"answer": ("sample", np.array([f"é{name}" for name in ids], dtype=object))},
        {"sample": ids},
    )
    return xr.DataTree.from_dict({"/": root, "/llm": llm})


def work(folder: Path, count: int) -> None:
    rank = os.environ.get("RANK", "0")
    run, samples = RunDirectory.open(folder, SAME, rank), samples_of(count)
    run.todo(samples)
    print("working", flush=True)
    run_samples(run, samples, measured, size=PART)
    if rank == "0":
        run.compact([sample.id for sample in samples])


def started(folder: Path, count: int, workers: int = 1) -> subprocess.Popen:
    """A worker of its own process, or the launcher of several, past the imports of a worker."""
    launcher = [sys.executable] if workers == 1 else launcher_command(workers)
    command = [*launcher, __file__, "--work", str(folder), "--samples", str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def disturbed(folder: Path, count: int, kills: int, seconds: float, seed: int = 0) -> int:
    """Runs, kills, resumes; the last time to the end. Returns the kills that hit a worker which was
    not done.
    """
    chance, hit = random.Random(seed), 0
    for _ in range(kills):
        process = started(folder, count)
        time.sleep(chance.uniform(0, 1.5 * seconds / kills))
        process.kill()
        hit += process.wait() != 0
    assert started(folder, count).wait() == 0
    return hit


def disturbed_workers(folder: Path, count: int, kills: int, workers: int, seed: int = 0) -> int:
    """The same for several workers, of which a kill hits one, the launcher, or all. Returns the
    samples that were set aside on the way, as the kills met them twice; they are tried again.
    """
    chance, process = random.Random(seed), started(folder, count, workers)
    for _ in range(kills):
        if process.poll() is not None:
            process = started(folder, count, workers)
        time.sleep(chance.uniform(0, 2 * SECONDS * count / kills))
        at_work = sorted({c.process.pid for c in Claims(folder).all() if c.live and c.samples})
        victims = chance.choice((at_work[:1], [process.pid], [process.pid, *at_work]))
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if process.pid in victims:
            process.wait()
    assert started(folder, count, workers).wait() == 0
    set_aside = len(RunDirectory(folder).failures())
    if set_aside:
        shutil.rmtree(folder / "failures")
        assert started(folder, count).wait() == 0
    return set_aside


def differences(one: Path, other: Path, count: int) -> list[str]:
    """What is not as it should be: nothing, or one line each."""
    found, order = [], [sample.id for sample in samples_of(count)]
    runs = [RunDirectory(one), RunDirectory(other)]
    for run in runs:
        names = [name for part in run.parts() for name in read_ids(part)]
        if sorted(names) != order:
            found.append(
                f"{run.folder}: {len(names)} samples in parts, {len(set(names))} different ones"
            )
    first, second = (run.load(order) for run in runs)
    if not first.identical(second):  # pyright: ignore
        found.append("the results differ")
    compacted = [
        xr.open_datatree(run.folder / "final.zarr", engine="zarr", chunks=None) for run in runs
    ]
    if (
        not compacted[0].identical(compacted[1])
        or compacted[0].coords["sample"].values.tolist() != order
    ):
        found.append("the compacted results differ, or are not in order")
    means = []
    for run in runs:
        mean = RunningMean()
        for part in run.stream():
            mean.add(part["llm"]["mass"])  # pyright: ignore
        means.append(mean.result().values)
    if not np.array_equal(*means):
        found.append("the streamed means differ")
    return found


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--samples", type=int, default=500)
    arguments.add_argument("--workers", type=int, default=1)
    arguments.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.work:
        work(given.work, given.samples)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        calm, rough = Path(folder, "calm"), Path(folder, "rough")
        process, start = started(calm, given.samples), time.monotonic()
        assert process.wait() == 0
        if given.workers > 1:
            aside = disturbed_workers(rough, given.samples, given.kills, given.workers)
            print(f"{given.kills} kills; {aside} samples were set aside and tried again")
        else:
            hit = disturbed(rough, given.samples, given.kills, time.monotonic() - start)
            print(f"{hit} of {given.kills} kills hit a worker at work")
        found = differences(calm, rough, given.samples)
        stray = len(list((rough / "parts").glob("*.tmp")))
        print(f"{stray} unfinished parts were left and ignored")
    print("\n".join(found) or f"{given.samples} samples, each exactly once; numbers identical")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
