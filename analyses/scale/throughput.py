"""What the engine itself costs, and what more workers bring: samples that take half a second each.

    python analyses/scale/throughput.py --samples 40 --workers 1 2 4

A sample sleeps instead of computing, so that the ratios hold on a machine with other work; claims,
parts and the index are those of every run. Start-up is apart: a worker's time counts from its first
sample to the end. Prints, for each number of workers, samples a second, the ratio to one worker,
the overhead (time ÷ the time within samples, minus 1), and what 8 and 64 GPUs would do on paper
with the CPU seconds that the engine was measured to take a sample.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

from probe.cli.launcher import launcher_command
from probe.data.sample import Sample
from probe.records.provenance import RunFingerprint
from probe.records.run_directory import RunDirectory
from probe.records.run_work import run_samples

SECONDS = 0.5  # of a sample
SAME = RunFingerprint("none", "0", "float32", "none", "none", plan="throughput", data={})


class Sleeping:
    """Measures nothing; notes when it was at work."""

    def __init__(self) -> None:
        self.begun: float | None = None
        self.inside = 0.0

    def __call__(self, group: list[Sample]) -> xr.Dataset:
        since = time.time()
        self.begun = self.begun or since
        time.sleep(SECONDS * len(group))
        self.inside += time.time() - since
        ids = np.array([sample.id for sample in group], dtype=object)
        return xr.Dataset(
            {"mass": (("sample", "layer", "head"), np.zeros((len(ids), 32, 32), np.float32))},
            {"sample": ids},
        )


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def work(folder: Path, count: int) -> None:
    """One worker; leaves when it was at work, and the CPU seconds that it took, beside the run."""
    rank = os.environ.get("RANK", "0")
    samples = [Sample(f"question-{number:05d}", f"{number}.jpg", "?") for number in range(count)]
    run, sleeping, before = RunDirectory.open(folder, SAME, rank), Sleeping(), cpu()
    run_samples(run, samples, sleeping)
    facts = {"begun": sleeping.begun, "ended": time.time(), "cpu": cpu() - before}
    facts["inside"] = sleeping.inside
    (folder / f"worker-{rank}.json").write_text(json.dumps(facts))


def measured(count: int, workers: int) -> tuple[float, float, float]:
    """Seconds from the first sample to the end of all, the overhead, and CPU seconds a sample."""
    with tempfile.TemporaryDirectory() as name:
        launcher = [sys.executable] if workers == 1 else launcher_command(workers)
        command = [*launcher, __file__, "--work", name, "--samples", str(count)]
        subprocess.run(command, check=True, capture_output=True)
        found = [json.loads(file.read_text()) for file in Path(name).glob("worker-*.json")]
    at_work = [facts for facts in found if facts["begun"] is not None]
    first = min(facts["begun"] for facts in at_work)
    last = max(facts["ended"] for facts in at_work)
    at_work_for = sum(facts["ended"] - facts["begun"] for facts in at_work)
    overhead = at_work_for / sum(facts["inside"] for facts in at_work) - 1
    return last - first, overhead, sum(facts["cpu"] for facts in found) / count


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--samples", type=int, default=40, help="for each worker")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.work:
        work(given.work, given.samples)
        return
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}; {given.samples} samples a worker")
    print("workers  samples/s  ratio  overhead  engine CPU (ms a sample)", flush=True)
    first, engine = 0.0, 0.0
    for workers in given.workers:
        seconds, overhead, engine = measured(given.samples * workers, workers)
        rate = given.samples * workers / seconds
        first = first or rate
        print(
            f"{workers:7d}  {rate:9.2f}  {rate / first:5.2f}  {100 * overhead:6.1f} %  "
            f"{1000 * engine:24.1f}",
            flush=True,
        )
    for gpus in (8, 64):
        rate = gpus / (SECONDS + engine)
        print(
            f"on paper, {gpus} GPUs: {rate:.0f} samples/s, {gpus * SECONDS / (SECONDS + engine):.1f} x one"
        )


if __name__ == "__main__":
    main()
