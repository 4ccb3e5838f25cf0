"""What one process has claimed no other computes; what dead ones claimed is taken over."""

# pyright: reportArgumentType=false

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import xarray as xr

from probe.data.sample import Sample
from probe.errors import ProbeError, RunWarning
from probe.records import run_claims, run_process, run_work
from probe.records.provenance import RunFingerprint
from probe.records.run_claims import STALE_SECONDS, Claims
from probe.records.run_directory import RunDirectory
from probe.records.run_packs import packs, packs_of_shard
from probe.records.run_process import Process, is_gone, this_process
from probe.records.run_work import run_samples

SAME = RunFingerprint("tiny-llava", "1", "float32", "sdpa", "vicuna", plan="claims", data={})
SAMPLES = [Sample(f"q{number:02d}", f"{number // 2}.jpg", "?") for number in range(12)]
IDS = [sample.id for sample in SAMPLES]


def measured(group: list[Sample]) -> xr.Dataset:
    ids = np.array([sample.id for sample in group], dtype=object)
    return xr.Dataset({"value": ("sample", [float(name[1:]) for name in ids])}, {"sample": ids})


class Counting:
    """`measured`, noting what it was asked for; the first call waits for those of others."""

    def __init__(self, meeting: threading.Barrier | None = None):
        self.asked: list[list[str]] = []
        self.meeting = meeting

    def __call__(self, group: list[Sample]) -> xr.Dataset:
        self.asked.append([sample.id for sample in group])
        if self.meeting is not None:
            self.meeting.wait(20)
            self.meeting = None
        return measured(group)

    @property
    def ids(self) -> list[str]:
        return [name for group in self.asked for name in group]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_work, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(run_claims, "LISTED_SECONDS", 0.0)
    return RunDirectory.open(tmp_path / "run", SAME)


@pytest.fixture(scope="module")
def dead() -> Process:
    """A process of this machine that has ended."""
    code = """if True:
        import dataclasses, json
        from probe.records.run_process import this_process
        print(json.dumps(dataclasses.asdict(this_process("1"))))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return Process(**json.loads(done.stdout))


def claim_of(run, process: Process, position: int, times: int = 1, **more) -> list:
    """Claims of another process on the group of an image, as its files would be."""
    group = packs(SAMPLES)[position].groups[0]
    ids = [sample.id for sample in group.samples]
    made = []
    for _ in range(times):
        claims = Claims(run.folder, "1")
        claims.process = process
        claims.folder.mkdir(exist_ok=True)
        alive, run_claims.is_gone = run_claims.is_gone, lambda _: True
        try:
            assert claims.take(group.name, ids, **more)
        finally:
            run_claims.is_gone = alive
        made.append(claims)
    return made


def files(run) -> list[str]:
    return sorted(os.listdir(run.folder / "claims"))


def test_two_starts_at_once_compute_nothing_twice(run):
    meeting = threading.Barrier(2)
    workers = [Counting(meeting), Counting(meeting)]
    progress: list[list[int]] = [[], []]

    def work(number: int) -> None:
        mine = RunDirectory.open(run.folder, SAME, worker=str(number))
        run_samples(mine, SAMPLES, workers[number], progress=progress[number].append, size=2)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(workers[0].ids + workers[1].ids) == IDS
    assert all(worker.asked for worker in workers)
    assert [sum(counts) for counts in progress] == [12, 12]  # each sees what all have done
    assert files(run) == []
    assert run.load(IDS)["value"].values.tolist() == list(range(12))


def test_samples_of_one_image_are_measured_by_one_and_in_packs_that_never_change():
    assert [[s.id for s in pack.samples] for pack in packs(SAMPLES[:5], batch=4)] == [
        IDS[:4],
        IDS[4:5],
    ]
    assert [len(pack.samples) for pack in packs(SAMPLES, batch=3)] == [2] * 6
    several = packs([Sample(str(n), "one.jpg", "?") for n in range(9)], batch=4)
    assert [len(pack.samples) for pack in several] == [9]
    assert packs([]) == []
    names = [group.name for pack in packs(SAMPLES) for group in pack.groups]
    assert names == [g.name for pack in packs(SAMPLES, 4) for g in pack.groups]
    assert len(set(names)) == 6


def test_shards_are_all_of_the_work_and_end_without_the_others(run):
    shares = [packs_of_shard(packs(SAMPLES), f"{number}/4") for number in range(4)]
    assert sorted(s.id for share in shares for pack in share for s in pack.samples) == IDS
    counting = Counting()
    run_samples(run, SAMPLES, counting, shard="1/4")
    assert counting.ids == ["q02", "q03", "q10", "q11"]
    for wrong in ("4/4", "1", "a/b", "-1/4", ""):
        with pytest.raises(ProbeError, match="i/n with i from 0"):
            packs_of_shard([], wrong)


def test_a_claim_names_its_process_and_is_given_back_on_any_orderly_end(run):
    seen = []

    def interrupted(group):
        (claim,) = Claims(run.folder).all()
        seen.append(claim)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_samples(run, SAMPLES, interrupted)
    assert seen[0].process == this_process("0")
    assert abs(seen[0].since - time.time()) < 60
    assert seen[0].samples == ("q00", "q01")
    assert seen[0].live and not seen[0].measured
    assert files(run) == []


def test_sigterm_ends_the_work_and_gives_claims_back(run):
    def terminated(group):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        run_samples(run, SAMPLES, terminated)
    assert end.value.code == 143
    assert files(run) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_claims_are_touched_while_their_process_lives(run, monkeypatch):
    monkeypatch.setattr(run_claims, "TOUCHED_SECONDS", 0.01)
    with Claims(run.folder) as claims:
        assert claims.take("abc", ["q00"])
        path = claims.folder / "abc.1"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
    assert files(run) == []


def test_what_a_dead_process_claimed_is_taken_over_after_the_rest(run, dead):
    assert is_gone(dead)
    assert not is_gone(this_process("0"))
    assert is_gone(replace(this_process("0"), started="1"))  # its number came again
    claim_of(run, dead, 1)
    counting = Counting()
    run_samples(run, SAMPLES, counting)
    assert sorted(counting.ids) == IDS
    assert counting.ids[-2:] == IDS[2:4]
    assert files(run) == []


def test_a_group_over_which_processes_died_twice_is_set_aside_by_name(run, dead):
    claim_of(run, dead, 1, times=2)
    counting = Counting()
    with pytest.warns(RunWarning, match=r"set aside q02, q03: .* 2 times.*; the run goes on"):
        run_samples(run, SAMPLES, counting)
    assert sorted(counting.ids) == IDS[:2] + IDS[4:]
    assert [(f.id, f.attempt) for f in run.failures()] == [("q02", 2), ("q03", 2)]
    assert str(dead) in run.failures()[0].reason
    run_samples(RunDirectory.open(run.folder, SAME), SAMPLES, counting)
    assert files(run) == []
    assert len(counting.ids) == 10


def test_deaths_after_the_work_and_restarts_count_against_nobody(run, dead):
    for _ in range(4):
        (claims,) = claim_of(run, dead, 1)
        claims.mark_measured(packs(SAMPLES)[1].groups[0].name)
    counting = Counting()
    run_samples(run, SAMPLES, counting)
    assert sorted(counting.ids) == IDS
    assert not run.failures()


def test_folders_of_processes_that_were_killed_are_removed_and_no_others(
    tmp_path, dead, monkeypatch
):
    living = run_process.this_process
    monkeypatch.setattr(run_process, "this_process", lambda _: dead)
    with run_process.own_folder(tmp_path, ".unfinished-") as folder:
        left = tmp_path / folder.name
        copy = shutil.copytree(left, tmp_path / "copy")
    copy.rename(left)
    monkeypatch.setattr(run_process, "this_process", living)
    users = tmp_path / ".unfinished-work"
    users.mkdir()
    with run_process.own_folder(tmp_path, ".unfinished-") as mine:
        assert not left.exists()
        with run_process.own_folder(tmp_path, ".unfinished-"):
            assert mine.exists()
    assert list(tmp_path.iterdir()) == [users]


def test_of_groups_measured_together_only_the_one_that_kills_is_set_aside(run, dead):
    for position in range(3):
        claim_of(run, dead, position, times=2, alone=False)
    counting = Counting()
    run_samples(run, SAMPLES[:6], counting, batch=6)
    assert counting.asked == [IDS[:2], IDS[2:4], IDS[4:6]]
    assert not run.failures()


def test_a_process_elsewhere_keeps_its_claim_for_five_minutes(run, dead):
    elsewhere = replace(dead, host="node7", machine="node7 boot")
    (claims,) = claim_of(run, elsewhere, 1)
    name = packs(SAMPLES)[1].groups[0].name
    counting = Counting()
    run_samples(run, SAMPLES, counting, shard="1/6")  # does not wait
    assert counting.ids == []
    (claim,) = Claims(run.folder).all()
    assert claim.live
    past = time.time() - STALE_SECONDS - 1
    os.utime(claims.folder / f"{name}.1", (past, past))
    run_samples(run, SAMPLES, counting, shard="1/6")
    assert counting.ids == IDS[2:4]


def test_the_last_ones_are_waited_for(run, dead, monkeypatch):
    told, lines = threading.Event(), []
    monkeypatch.setattr(run_work, "PATIENCE", 0.0)
    monkeypatch.setattr(run_work, "report", lambda line: (lines.append(line), told.set()))
    elsewhere = replace(dead, host="node7", machine="node7 boot")
    (claims,) = claim_of(run, elsewhere, 1)
    other = RunDirectory.open(run.folder, SAME, worker="1")

    def finish() -> None:
        told.wait(20)
        other.write(measured(SAMPLES[2:4]))
        claims.release(packs(SAMPLES)[1].groups[0].name)

    thread = threading.Thread(target=finish)
    thread.start()
    counting, counts = Counting(), []
    run_samples(run, SAMPLES, counting, progress=counts.append)
    thread.join()
    assert lines == [f"waiting for 2 samples on which node7:{dead.pid} work"]
    assert counting.ids == IDS[:2] + IDS[4:]
    assert sum(counts) == 12


def test_a_sample_that_fails_is_tried_once_a_command_whoever_tries_it(run):
    other = RunDirectory.open(run.folder, SAME, worker="1")

    def failing(group):
        if group[0].id == "q00":
            other.fail("q02", ValueError("elsewhere"))
            other.fail("q03", ValueError("elsewhere"))
        return measured(group)

    counting = Counting()
    run_samples(run, SAMPLES[:4], lambda group: counting(group) is None or failing(group))
    assert counting.ids == IDS[:2]
    run_samples(run, SAMPLES[:4], counting)
    assert counting.ids == IDS[:4]


def test_a_file_system_without_hard_links_will_do(run, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    with Claims(run.folder, "0") as one, Claims(run.folder, "1") as other:
        assert one.take("abc", ["q00"])
        assert not other.take("abc", ["q00"])
        (claim,) = other.of("abc")
        assert claim.process == one.process
        assert asdict(claim)["samples"] == ("q00",)


def test_a_claim_whose_file_cannot_be_read_is_somebodys(run):
    with Claims(run.folder) as claims:
        (claims.folder / "abc.1").write_text("")
        assert not claims.take("abc", ["q00"])
        past = time.time() - STALE_SECONDS - 1
        os.utime(claims.folder / "abc.1", (past, past))
        assert claims.take("abc", ["q00"])
    assert files(run) == ["abc.1"]


def test_a_start_reads_the_index_and_no_part(run, monkeypatch):
    run_samples(run, SAMPLES, measured, size=1)
    lines = (run.folder / "index" / "0.jsonl").read_bytes()
    read = []
    monkeypatch.setattr("probe.records.run_parts.read_part_header", lambda path: read.append(path))
    assert RunDirectory.open(run.folder, SAME).done() == set(IDS)
    assert read == []
    monkeypatch.undo()
    for damaged in (b"", lines[: len(lines) // 2], lines.replace(b'"q03"', b'"q13"')):
        (run.folder / "index" / "0.jsonl").write_bytes(damaged)
        again = RunDirectory.open(run.folder, SAME, worker="9")
        assert again.done() == set(IDS)
        (run.folder / "index" / "9.jsonl").unlink(missing_ok=True)


def test_damage_that_the_time_of_a_file_hides_is_found_when_it_is_read(run):
    run_samples(run, SAMPLES, measured, size=4)
    part = run.parts()[1]
    stat, content = part.stat(), bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(content)
    os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = RunDirectory.open(run.folder, SAME)
    assert again.done() == set(IDS)
    with pytest.raises(ProbeError, match="a whole part in"):
        again.load(IDS)
    with pytest.warns(RunWarning, match="is damaged .*: renamed to"):
        assert len(RunDirectory.open(run.folder, SAME).done()) == 8
