"""Which of several workers this process is, by what its launcher put into the environment.

    worker = this_worker()             # torchrun, accelerate launch, srun, --workers, --ray
    worker.rank, worker.count          # 3 of 8; 0 of 1 without a launcher
    device_of(worker, device=None)     # "cuda:3"

Workers share nothing but the run directory: there is no process group, and nothing to wait for.
"""

import os
import signal
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

# rank, count and place on the machine, by torch's launcher (accelerate's is the same) and by srun
TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
MISTAKES = "PROBE_MISTAKES"  # the folder in which workers of --workers and --gpus leave mistakes
LAUNCHER = "PROBE_LAUNCHER"  # number and start of the process that was given --workers or --gpus
WATCH_SECONDS = 1.0  # between two looks whether the launchers are there

command_line: ContextVar[tuple[str, ...]] = ContextVar("command_line", default=())


@dataclass(frozen=True)
class Worker:
    """The worker `rank` of `count`, and its place among those of its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether it is the one that speaks, and that writes the results at the end."""
        return self.rank == 0


def this_worker() -> Worker:
    """This process among those that were launched together."""
    for names in (TORCH, SLURM):
        numbers = [os.environ.get(name, "") for name in names]
        if all(number.isdecimal() for number in numbers):
            worker = Worker(*map(int, numbers))
            # a notebook in an allocation of several tasks has their variables, but is alone
            if worker.count > 1 and worker.rank < worker.count:
                return worker
    return Worker()


def device_of(worker: Worker, device: str | None) -> str | None:
    """The device of a worker: the one that was asked for, else a GPU of its own where there are as
    many; None where that is left to `load`.
    """
    if device is not None or worker.count == 1:
        return device
    import torch

    gpus = torch.cuda.device_count()
    return f"cuda:{worker.local_rank % gpus}" if gpus else None


def use_gpus(worker: Worker, each: int) -> None:
    """Leaves this process `each` GPUs of its own. To be called before torch is used."""
    start = worker.local_rank * each
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = given.split(",") if given else [str(number) for number in range(start + each)]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[start : start + each])


def is_launched() -> bool:
    """Whether a process of `probe` itself launched this one (`--workers`, `--gpus`)."""
    return MISTAKES in os.environ


def end_with_launcher() -> None:
    """Ends this process in an orderly way when torch's launcher has ended. Where the process that
    started that one was killed, torch's launcher is ended, and with it all workers.
    """
    from probe.records.run_process import is_gone, this_process

    torch_launcher = os.getppid()
    pid, _, started = os.environ.get(LAUNCHER, "").partition(" ")
    command = replace(this_process("0"), pid=int(pid or os.getpid()), started=started)

    def watch() -> None:
        while os.getppid() == torch_launcher:
            time.sleep(WATCH_SECONDS)
            if pid and is_gone(command):
                os.kill(torch_launcher, signal.SIGTERM)
                return
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def tell_launcher(line: str) -> bool:
    """Leaves a user's mistake to the process that launched this one, which prints it once for all
    workers. False where there is none.
    """
    folder = os.environ.get(MISTAKES)
    if not folder or not Path(folder).is_dir():
        return False
    (Path(folder) / f"{this_worker().rank}.txt").write_text(line, encoding="utf-8")
    return True
