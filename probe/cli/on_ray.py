"""`--ray`: this command in actors of Ray, on this machine or on a cluster.

    run_on_ray(["drop", "--benchmark", "gqa", ...], "local", count=8, gpus=1)     # the exit code

Each actor runs the command as one worker of `count`; Ray starts an actor again where it dies and
gives it the same work, of which it computes what is missing. The folder of the results has to be
one that all machines of the cluster share. Needs the extra `ray`.
"""

import contextlib
import io
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import typer

from probe.errors import ProbeError

RESTARTS = 10  # of an actor


def run_on_ray(arguments: Sequence[str], address: str, count: int, gpus: int) -> int:
    """Runs the command in `count` actors with `gpus` GPUs each, and prints what the first says.

    Raises ProbeError where Ray is not installed or not reached, and for the mistake of a worker.
    """
    if find_spec("ray") is None:
        fix = "pip install 'probe-llava[ray]'"
        raise ProbeError("--ray", expected="the package ray", got="none", fix=fix)
    import ray  # pyright: ignore[reportMissingImports]
    from ray.util import ActorPool  # pyright: ignore[reportMissingImports]

    _connect(ray, address, count)
    try:
        remote: Any = ray.remote(
            num_gpus=gpus,
            num_cpus=1,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )(RayWorker)
        pool = ActorPool([remote.remote(os.getcwd()) for _ in range(count)])
        commands = [(rank, count, tuple(arguments)) for rank in range(count)]
        results = list(pool.map(lambda actor, command: actor.run.remote(*command), commands))
    except ray.exceptions.RayError as error:
        got = " ".join(str(error).split())[:300]
        fix = "what is finished is kept: give the same command again"
        raise ProbeError("--ray", expected="actors that stay alive", got=got, fix=fix) from None
    finally:
        ray.shutdown()
    for _, printed, mistake in results:
        if mistake:
            raise ProbeError("--ray", got=mistake)
        typer.echo(printed, nl=False)
    return max(code for code, _, _ in results)


def _connect(ray: Any, address: str, count: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False}
    if address == "local":
        options |= {"num_cpus": max(count, os.cpu_count() or 1), "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=address, **{k: v for k, v in options.items() if _fits(k, address)})
    except (ConnectionError, ValueError, RuntimeError) as error:
        got = f"{address!r} ({' '.join(str(error).split())[:200]})"
        fix = "start one with `ray start --head`, or pass --ray local"
        raise ProbeError("--ray", expected="a Ray cluster", got=got, fix=fix) from None


def _fits(option: str, address: str) -> bool:
    """An existing cluster has a dashboard of its own, or none."""
    return address == "local" or option != "include_dashboard"


class RayWorker:
    """An actor: runs the command as one of several workers."""

    def __init__(self, folder: str):
        os.chdir(folder)  # relative paths of the command are those of the driver

    def run(self, rank: int, count: int, arguments: tuple[str, ...]) -> tuple[int, str, str]:
        """The exit code, what it printed, and the mistake it ended with."""
        from probe.cli import main

        # Ray shows each actor its own GPUs only, so that its first one is its own
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": "0"}
        printed = io.StringIO()
        complaints = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
            try:
                main(list(arguments))
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        lines = [line for line in complaints.getvalue().splitlines() if line.startswith("probe:")]
        mistake = lines[-1].removeprefix("probe: ") if code == 2 and lines else ""
        return code, printed.getvalue(), mistake
