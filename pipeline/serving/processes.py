"""Processes of a server, and what they leave behind.

Triton's Python models are processes with shared memory of their own, and a server that is killed leaves both. They
carry a name that tells which supervisor they belong to, so that the next start removes what belongs to nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.owner import NAMESPACE, began, stat

SHARED_MEMORY = Path("/dev/shm")
STUB = "triton_python_backend_stub"
"""Name of the program that runs a Python model."""
ORPHANS_LIMIT = 2
"""Seconds that the server's child processes may outlive it."""
POLL = 0.02
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(6 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 20)}
"""Settings of the C library with which the memory of large images goes back to the system.

Arrays of usual images stay below: to ask the system for each of a megabyte takes 7 % of the time of an image of 128².
"""


def start(command: Sequence[str | Path], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a server that terminates when this process ends for any reason, with no blocked signals.

    Raises:
        OSError: the server cannot be run.
    """
    libc, parent = ctypes.CDLL(None), os.getpid()

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    return subprocess.Popen(command, env={**MALLOC, **os.environ, **environment}, preexec_fn=before_exec)


def adopt_orphans() -> None:
    """Become the parent of processes whose parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def children(pid: int | str = "self") -> list[int]:
    """Return the process IDs of a process's children."""
    found = []
    with contextlib.suppress(OSError):  # the process has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # the thread has ended
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def end_orphans(limit: float = ORPHANS_LIMIT) -> None:
    """End orphaned processes of an ended server: those of models that were still loading can hang.

    Processes whose server was killed do not end by themselves: for them, ``limit`` is best 0.
    """
    deadline = time.monotonic() + limit
    while left := children():
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        os.waitpid(-1, os.WNOHANG)
        time.sleep(POLL)


def stub_arguments(pid: int | str) -> list[str]:
    """Return the arguments of a process that runs a Python model, empty if it is another one or has ended."""
    try:
        program, *words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
    return words if Path(program).name == STUB else []


def model_processes(server: int) -> dict[int, str]:
    """Return process ID ⇒ model of the server's Python models that run."""
    return {pid: Path(words[0]).parent.parent.name for pid in children(server) if (words := stub_arguments(pid))}


def busy_seconds(server: int) -> dict[int, float]:
    """Return process ID ⇒ seconds that the server and its Python models have run on, or waited for, a processor."""
    return {pid: cpu_seconds(pid) + _waited_seconds(pid) for pid in (server, *model_processes(server))}


def cpu_seconds(*pids: int) -> float:
    """Return the processor time that processes have taken, in seconds."""
    fields = [stat(pid) for pid in pids]
    return sum(int(found[11]) + int(found[12]) for found in fields if found) / os.sysconf("SC_CLK_TCK")


def _waited_seconds(pid: int) -> float:
    """Return the seconds for which threads of a process have waited for a processor."""
    waited = 0
    with contextlib.suppress(OSError):  # the process has ended, or the kernel does not tell
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # the thread has ended
                waited += int((task / "schedstat").read_text().split()[1])
    return waited / 1e9


def is_dead(pid: int) -> bool:
    """Whether a child of the server is gone, or has ended and the server does not know."""
    return stat(pid)[:1] in ([], ["Z"])


def region_prefix() -> str:
    """Return the beginning of the names of this supervisor's regions of shared memory.

    It holds the namespace of process IDs, in which alone they mean something: containers may share /dev/shm.
    """
    return f"cxr-superres-{NAMESPACE.stat().st_ino}-{os.getpid()}-{began('self')}-"


def _belongs_to_nobody(name: str) -> bool:
    """Whether a region's name tells that it belongs to a supervisor that has ended."""
    match = re.match(r"cxr-superres-(\d+)-(\d+)-(\d+)-", name)
    if match is None or int(match[1]) != NAMESPACE.stat().st_ino:
        return False
    return began(match[2]) != match[3]


def remove_leftovers(is_left: Callable[[str], bool] = _belongs_to_nobody) -> tuple[int, int]:
    """Kill model processes and remove regions of shared memory that belong to nobody.

    Args:
        is_left: whether a region's name marks it, and the process that uses it, as left behind.

    Returns:
        The number of processes and of regions. What belongs to other users stays.
    """
    processes = regions = 0
    for pid in filter(str.isdecimal, (path.name for path in Path("/proc").iterdir())):
        if any(map(is_left, stub_arguments(pid))):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), signal.SIGKILL)
                processes += 1
    with contextlib.suppress(OSError):
        for path in SHARED_MEMORY.iterdir():
            if is_left(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()
                    regions += 1
    return processes, regions
