"""What `probe status` knows of a run from its folder."""

# pyright: reportArgumentType=false

import os
import time

import numpy as np
import pytest
import xarray as xr

import probe
from probe.data.sample import Sample
from probe.errors import ProbeError
from probe.records.provenance import RunFingerprint
from probe.records.run_claims import Claims
from probe.records.run_directory import RunDirectory
from probe.records.run_status import run_status
from probe.records.run_work import run_samples

PLAN = {"verb": "drop", "modes": {}}
DATA = {"benchmark": "gqa"}
SAME = RunFingerprint("tiny-llava", "1", "float32", "sdpa", "vicuna", plan=PLAN, data=DATA)
SAMPLES = [Sample(f"q{number}", f"{number}.jpg", "?") for number in range(8)]


def measured(group: list[Sample]) -> xr.Dataset:
    if group[0].id == "q3":
        raise ValueError("no image")
    ids = np.array([sample.id for sample in group], dtype=object)
    return xr.Dataset({"value": ("sample", np.zeros(len(ids)))}, {"sample": ids})


def test_a_run_in_the_middle(tmp_path):
    folder = tmp_path / "run"
    run_samples(RunDirectory.open(folder, SAME, "0"), SAMPLES, measured, shard="0/2", size=1)
    run_samples(RunDirectory.open(folder, SAME, "1"), SAMPLES[:4], measured, shard="1/2", size=1)
    names = sorted(os.listdir(folder / "parts"))
    for number, name in enumerate(names):  # a part every ten seconds, until now
        moment = time.time() - 10 * (len(names) - 1 - number)
        os.utime(folder / "parts" / name, (moment, moment))
    RunDirectory.open(folder, SAME).note(samples=8)
    with Claims(folder, "1") as claims:
        assert claims.take("abc", ["q5", "q7"])
        found = run_status(folder)
    assert (found.name, found.done, found.claimed, found.asked) == (
        "drop of tiny-llava on gqa",
        5,
        2,
        8,
    )
    assert [failure.id for failure in found.failures] == ["q3"]
    assert found.rate == pytest.approx(0.1, rel=1e-3)
    assert found.seconds_left == pytest.approx(20, rel=1e-3)
    first, second = found.workers
    assert (first.name, first.done, first.claimed, first.state) == ("0", 4, 0, "idle or ended")
    assert (second.name, second.done, second.claimed) == ("1", 1, 2)
    assert second.state == "measuring q5"
    assert second.process.endswith(f":{os.getpid()}")


def test_of_a_finished_run_no_time_is_left(tmp_path):
    run = RunDirectory.open(tmp_path / "run", SAME)
    run_samples(run, SAMPLES[4:], measured, size=1)
    found = run_status(tmp_path / "run")
    assert (found.done, found.asked) == (4, 4)
    assert found.rate > 0
    assert found.seconds_left is None


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(ProbeError, match="a run directory with"):
        run_status(tmp_path)
    with pytest.raises(ProbeError, match="got no such folder"):
        run_status(tmp_path / "nope")
    RunDirectory.open(tmp_path, SAME)
    empty = run_status(tmp_path)
    assert (empty.done, empty.rate, empty.seconds_left, empty.workers) == (0, 0.0, None, ())


def test_opening_the_folder_of_a_run_says_how_it_is_read(tmp_path):
    with pytest.raises(ProbeError, match=r"RunDirectory\(folder\)\.load\(\)"):
        probe.open_record(tmp_path)
