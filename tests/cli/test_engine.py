"""Workers: who this process is, what the options may ask for, what the launcher does at a death."""

# pyright: reportArgumentType=false

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import typer

from probe.cli import launcher, worker
from probe.cli.engine import EngineOptions
from probe.cli.launcher import run_workers
from probe.cli.options import ModelOptions
from probe.cli.worker import Worker, device_of, this_worker, use_gpus
from probe.errors import ProbeError
from probe.records.run_directory import RunDirectory

VARIABLES = (*worker.TORCH, *worker.SLURM, worker.MISTAKES, worker.LAUNCHER, "CUDA_VISIBLE_DEVICES")


@pytest.fixture(autouse=True)
def nobody_launched(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def launched(monkeypatch, names, *numbers) -> None:
    for name, number in zip(names, numbers, strict=True):
        monkeypatch.setenv(name, str(number))


def test_a_worker_is_known_by_its_launchers_variables(monkeypatch):
    assert this_worker() == Worker(0, 1, 0)
    launched(monkeypatch, worker.SLURM, 5, 8, 1)
    assert this_worker() == Worker(5, 8, 1)
    launched(monkeypatch, worker.TORCH, 3, 4, 3)  # torchrun inside of srun
    assert this_worker() == Worker(3, 4, 3)
    launched(monkeypatch, worker.TORCH, 0, 1, 0)  # accelerate on a CPU: one process
    launched(monkeypatch, worker.SLURM, 0, 1, 0)
    assert this_worker() == Worker(0, 1, 0)
    monkeypatch.setenv("SLURM_NTASKS", "two")
    assert this_worker().first


@pytest.mark.parametrize(
    ("gpus", "asked", "expected"),
    [(0, None, None), (2, None, "cuda:1"), (8, None, "cuda:3"), (8, "cpu", "cpu")],
)
def test_each_worker_has_a_gpu_of_its_own(monkeypatch, gpus, asked, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert device_of(Worker(3, 4, 3), asked) == expected
    assert device_of(Worker(), asked) == asked


def test_workers_share_out_the_gpus_that_there_are(monkeypatch):
    launched(monkeypatch, worker.TORCH, 1, 2, 1)
    loading = EngineOptions(workers=2, gpus=4).placed(ModelOptions())
    assert loading.device_map == "auto"
    assert worker.os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c,GPU-d")
    use_gpus(Worker(0, 2, 0), 2)
    assert worker.os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_an_actor_of_ray_spreads_the_model_over_the_gpus_that_it_was_given(monkeypatch):
    launched(monkeypatch, worker.TORCH, 1, 2, 0)  # as `RayWorker` sets them
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    loading = EngineOptions(workers=2, gpus=4, ray="local").placed(ModelOptions())
    assert loading.device_map == "auto"
    assert worker.os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"gpus": 3, "workers": 2}, "--gpus: expected as many GPUs for each of 2 workers, got 3"),
        ({"shard": "8/8"}, "--shard: expected i/n with i from 0 to n - 1"),
        ({"shard": "0/8", "workers": 2}, "--shard: expected one process, got several workers"),
        ({"ray": "local"}, r"--ray: expected the package ray, got none; pip install"),
    ],
)
def test_options_that_cannot_be_are_told_in_a_line(monkeypatch, options, complaint):
    monkeypatch.setattr("probe.cli.on_ray.find_spec", lambda _: None)
    with pytest.raises(ProbeError, match=complaint):
        EngineOptions(**options).launch()


def test_nothing_is_launched_unless_asked_and_never_by_a_worker(monkeypatch):
    monkeypatch.setattr(launcher, "run_workers", lambda arguments, count: count)
    EngineOptions().launch()
    EngineOptions(shard="1/8").launch()
    with pytest.raises(typer.Exit) as end:
        EngineOptions(gpus=3).launch()
    assert end.value.exit_code == 3
    launched(monkeypatch, worker.TORCH, 1, 2, 1)
    EngineOptions(workers=2).launch()


def test_workers_end_when_the_command_that_launched_them_was_killed(monkeypatch):
    ended, told = [], threading.Event()
    monkeypatch.setattr("os.kill", lambda *what: (ended.append(what), told.set()))
    monkeypatch.setattr("probe.records.run_process.is_gone", lambda process: process.pid == 7)
    monkeypatch.setattr(worker, "WATCH_SECONDS", 0.01)
    monkeypatch.setenv(worker.LAUNCHER, "7 123")
    worker.end_with_launcher()
    assert told.wait(20)
    assert ended == [(os.getppid(), signal.SIGTERM)]


@pytest.mark.parametrize("code", [-9, 1])
def test_a_launcher_that_was_ended_is_told_by_its_signal(monkeypatch, code):
    says = "raise SignalException: Process 7 got signal: 9"
    dying = f"import os, sys; print('{says}', file=sys.stderr, flush=True); os._exit({code % 256})"
    if code < 0:
        dying = "import os; os.kill(os.getpid(), 9)"
    monkeypatch.setattr(launcher, "launcher_command", lambda _: [sys.executable, "-c", dying])
    with pytest.raises(ProbeError, match="got torch's launcher ended by SIGKILL; what is finished"):
        run_workers([], 2)


SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from records.test_run_claims import SAME, SAMPLES, measured
from probe.cli.worker import tell_launcher
from probe.records.run_directory import RunDirectory
from probe.records.run_work import run_samples

folder, mistake = Path(sys.argv[3]), len(sys.argv) > 4
def deadly(group):
    with (folder.parent / "asked.txt").open("a") as file:
        file.write("".join(sample.id + " " for sample in group))
    if group[0].id == "q04":
        os.kill(os.getpid(), 9)
    return measured(group)

if mistake:
    sys.exit(0 if tell_launcher("drop: expected a model") else 2)
run_samples(RunDirectory.open(folder, SAME, os.environ["RANK"]), SAMPLES, deadly)
"""


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """The launcher, with a script of a second instead of the command line."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1])))
    plain = launcher.launcher_command
    # what follows, "-m probe", becomes arguments of the script
    monkeypatch.setattr(launcher, "launcher_command", lambda count: [*plain(count), str(script)])
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))


def test_a_sample_that_kills_its_process_twice_is_named_and_the_rest_is_done(
    tmp_path, scripted, capsys
):
    assert run_workers([str(tmp_path / "run")], count=2) == 0
    run = RunDirectory(tmp_path / "run")
    assert len(run.done()) == 10
    failed = {failure.id: failure.attempt for failure in run.failures()}
    assert failed == {"q04": 2, "q05": 2}
    asked = (tmp_path / "asked.txt").read_text().split()
    assert asked.count("q04") == 2
    said = capsys.readouterr().err
    # told once a round: both deaths may fall into one, where the other worker takes over at once
    assert "a worker died (exit code -9): all of them start again" in said
    assert run.settings()["fingerprint"]["plan"] == "claims"
    assert set(asked) == run.done() | {"q04"}


def test_a_mistake_of_all_workers_is_told_once(tmp_path, scripted):
    with pytest.raises(ProbeError, match="drop: expected a model") as error:
        run_workers([str(tmp_path / "run"), "mistake"], count=2)
    assert str(error.value).count("expected a model") == 1
