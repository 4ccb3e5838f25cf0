"""Which process runs, on which machine, and whether it still does.

    mine = this_process("0")
    is_gone(mine)                        # False: True only where it is certain

A process is known by its number and the time at which it started, as numbers come again; a machine
by its name, its boot and, in a container, the name space of its process numbers. Folders that a
process needs while it works carry its name, so that others can tell when they may go:

    with own_folder(out, ".unfinished-") as folder: ...
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from probe.records.provenance import content_hash


@dataclass(frozen=True)
class Process:
    """A worker of a run: the process `pid` of the machine `host`."""

    worker: str
    host: str
    machine: str  # host, boot and name space: pids are comparable where it is equal
    pid: int
    started: str  # in clock ticks since the boot; "" where the system does not tell

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


def this_process(worker: str) -> Process:
    """The process that asks, under the worker's name."""
    pid = os.getpid()
    return Process(worker, socket.gethostname(), _machine(), pid, _started(pid))


def is_here(process: Process) -> bool:
    """Whether it is, or was, a process of this machine."""
    return process.machine == _machine()


def is_gone(process: Process) -> bool:
    """Whether it is a process of this machine that has certainly ended."""
    if not is_here(process):
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's: it is there
        return False
    return process.started != _started(process.pid)


@contextlib.contextmanager
def own_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent` for the time of the block. Those that processes of this machine left
    there when they were killed are removed.
    """
    mine = this_process("0")
    machine = content_hash(mine.machine, length=16)
    of_a_process = re.compile(rf"{re.escape(prefix)}{machine}-(\d+)-(\d*)-\w+")
    for folder in parent.glob(f"{prefix}{machine}-*"):
        found = of_a_process.fullmatch(folder.name)
        if found and not folder.is_symlink():
            pid, started = found.groups()
            if is_gone(replace(mine, pid=int(pid), started=started)):
                shutil.rmtree(folder, ignore_errors=True)
    name = f"{prefix}{machine}-{mine.pid}-{mine.started}-"
    with tempfile.TemporaryDirectory(dir=parent, prefix=name, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM, where no handler is set, end the block as sys.exit does, so that claims are
    given back.
    """

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@cache
def _machine() -> str:
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(facts)


def _started(pid: int) -> str:
    """The start of a process; "" also for one that has ended and was not waited for (a zombie)."""
    with contextlib.suppress(OSError, IndexError):
        # proc(5): the name in brackets may contain spaces; then state is field 3, start field 22
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] not in "ZX":
            return fields[19]
    return ""
