"""`--workers` and `--gpus`: this command in several processes, by torch's own elastic launcher.

    run_workers(["drop", "--benchmark", "gqa", ...], count=8)     # the exit code

`torch.distributed.run` starts the workers, ends them all together, and starts them again where one
dies; what is finished is never computed again. It sets up no process group here. What the workers
print to stdout goes through; of what comes on stderr, torch's own messages are kept for an error.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from probe.cli.worker import LAUNCHER, MISTAKES
from probe.errors import ProbeError
from probe.records.run_process import this_process

RESTARTS = 10  # of all workers, each after one of them has died
ENDING_SECONDS = 60.0  # for workers to write what is finished
KEPT = 12  # lines of stderr that are shown when the workers could not be kept alive


def run_workers(arguments: Sequence[str], count: int) -> int:
    """Runs the command in `count` processes. Their mistakes are raised here, once (ProbeError)."""
    mine = this_process("0")
    with tempfile.TemporaryDirectory(prefix="probe-workers-") as folder:
        process = subprocess.Popen(
            [*launcher_command(count), "-m", "probe", *arguments],
            env=os.environ | {MISTAKES: folder, LAUNCHER: f"{mine.pid} {mine.started}"},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert process.stderr is not None
        last: deque[str] = deque(maxlen=KEPT)
        reader = threading.Thread(target=_pass_through, args=(process.stderr, last), daemon=True)
        reader.start()
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C, which the workers got too, or SIGTERM, which they did not
            _end(process)
            raise
        reader.join(1)
        mistakes = sorted({file.read_text(encoding="utf-8") for file in Path(folder).glob("*.txt")})
    if mistakes:
        raise ProbeError("workers", got=mistakes[0].removeprefix("workers: "))
    if code:
        shown = " | ".join(line.strip() for line in last if line.strip())[-600:]
        if ended := re.search(r"SignalException: .* got signal: (\d+)", shown):
            shown = f"torch's launcher ended by {signal.Signals(int(ended[1])).name}"
        elif code < 0:
            shown = f"torch's launcher ended by {signal.Signals(-code).name}"
        fix = "what is finished is kept: give the same command again"
        expected = f"workers that stay alive ({RESTARTS} restarts were not enough)"
        raise ProbeError("workers", expected=expected, got=shown or f"exit code {code}", fix=fix)
    return 0


def launcher_command(count: int) -> list[str]:
    """The command line that runs what is appended to it in `count` workers."""
    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(count)]
    options += ["--max-restarts", str(RESTARTS), "--monitor-interval", "0.2"]
    return [sys.executable, "-m", "torch.distributed.run", *options]


def _pass_through(stderr: Iterable[str], last: deque[str]) -> None:
    """Lines of probe itself, and its progress, as they come; the rest is kept."""
    for line in stderr:
        if line.startswith("probe:") or "sample/s" in line or "s/sample" in line:
            sys.stderr.write(line)
            sys.stderr.flush()
        else:
            last.append(line)
            if died := re.search(r"failed \(exitcode: (-?\d+)\)", line):
                print(
                    f"probe: a worker died (exit code {died[1]}): all of them start again, "
                    "what is finished is kept",
                    file=sys.stderr,
                )


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
