"""Supervise a server as a child process: start it, check it with test images, restart it, forward signals, clean up.

Triton never restarts the process of a Python model that died: every request of that model fails from then on, while the
server calls itself ready. So the whole server is restarted, once what can be answered has been.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.serving.drain import Door
from pipeline.serving.probe import MODEL, NotReady
from pipeline.serving.processes import (
    ORPHANS_LIMIT,
    adopt_orphans,
    busy_seconds,
    end_orphans,
    is_dead,
    model_processes,
    region_prefix,
    remove_leftovers,
    start,
)
from pipeline.spec import RESTARTS_VARIABLE

DRAIN_LIMIT = 4.0
"""Maximum seconds for requests in progress to finish before those that are left are refused."""
REFUSE_LIMIT = 2.0
"""Maximum seconds for models to refuse what is left, before stopping the server."""
TIMED_OUT = 1
"""Triton's exit status if connections are still open when it stops: even idle ones of HTTP."""
SEND_LIMIT = 0.2
"""Seconds to send answers before killing a server."""
EXIT_LIMIT = 4.0
"""Maximum seconds for the server to exit after a signal, before it is killed."""
POLL = 0.02
"""Seconds between two checks of a stopping server."""
WATCH_EVERY = 0.5
"""Seconds between two checks of the server's processes."""
PROBE_EVERY = 2.0
"""Seconds between two test images."""
REST_LIMIT = 2.5
"""Maximum seconds for a test image, unless others' requests keep the models busy."""
BUSY_SHARE = 0.1
"""Processor time per second from which a server that does not answer counts as busy."""
HANG_LIMIT = 20.0
"""Maximum seconds for which a process of a busy model may rest while an image waits."""
REST_SHARE = 0.0005
"""Processor time per second of a process that does nothing."""
MAX_ATTEMPTS = 5
"""Maximum consecutive starts without a server that stays ready for ``STABLE`` seconds."""
STABLE = 60.0
MAX_PAUSE = 8.0
"""Maximum seconds between two starts; the first pause is 0, and the next ones double from 1."""
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}


@dataclass
class Run:
    """One run of the server, from its start to its end."""

    server: subprocess.Popen[bytes]
    door: Door
    ready: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)
    failures: list[NotReady] = field(default_factory=list)
    models: dict[int, str] = field(default_factory=dict)
    """Process ID ⇒ model, of the processes that must not end while the server is ready."""
    began: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Problem:
    """Why a server must be restarted."""

    reason: str
    """"server" (it ended), "process" (a model's process died) or "answer" (a test image failed)."""
    text: str


def next_signal(server: subprocess.Popen[bytes] | None, limit: float) -> int | None:
    """Wait for the next SIGINT or SIGTERM, which this process blocks; return None after ``limit`` seconds.

    Also return None if the server, if there is one, ends first.
    """
    deadline = time.monotonic() + limit
    while (server is None or server.poll() is None) and (left := min(1, deadline - time.monotonic())) > 0:
        received = signal.sigtimedwait(SIGNALS, left)
        if received and received.si_signo != signal.SIGCHLD:
            return received.si_signo
    return None


def ending(server: subprocess.Popen[bytes]) -> str:
    """Describe how the server ended."""
    status = server.returncode
    return f"signal {-status}" if status < 0 else f"status {status}"


def end(run: Run, number: int = signal.SIGTERM, drain: float = DRAIN_LIMIT) -> None:
    """Finish or refuse requests in progress, stop the server by a signal, and remove everything that is left of it."""
    run.stopping.set()
    run.door.close()
    impatient = False
    for limit, refuse in ((drain, run.door.refuse), (REFUSE_LIMIT, None)):
        deadline = time.monotonic() + limit
        while not (run.door.is_idle() or impatient) and run.server.poll() is None and time.monotonic() < deadline:
            impatient = next_signal(run.server, POLL) is not None
        if refuse:
            refuse()
    if number == signal.SIGKILL:
        time.sleep(SEND_LIMIT)
    run.server.send_signal(number)
    try:
        run.server.wait(EXIT_LIMIT)
    except subprocess.TimeoutExpired:
        run.server.kill()
        run.server.wait()
    end_orphans(0 if run.server.returncode == -signal.SIGKILL else ORPHANS_LIMIT)
    prefix = region_prefix()
    remove_leftovers(lambda name: name.startswith(prefix))


def watch(run: Run, keeps_models: bool) -> Problem | int | None:
    """Return the problem of a server that was ready, the next signal, or None if it ended or failed before that.

    ``keeps_models``: whether the server never unloads a model, which ends its processes.
    """
    while True:
        if number := next_signal(run.server, WATCH_EVERY):
            return number
        if run.server.poll() is not None:
            return Problem("server", f"the server ended with {ending(run.server)}") if run.ready.is_set() else None
        if run.failures:
            return Problem("answer", str(run.failures[0])) if run.ready.is_set() else None
        if keeps_models and run.ready.is_set():
            if dead := [model for pid, model in run.models.items() if is_dead(pid)]:
                return Problem("process", f"a process of model '{dead[0]}' died")
            run.models |= model_processes(run.server.pid)


def probe_until_answered(run: Run, probe: Callable[[], object]) -> None:
    """Call ``probe``, and wait for it while others' requests keep the server busy.

    An image that waits has occupied a process of its model, or all of them are occupied: whichever rests then hangs.

    Args:
        run: the server.
        probe: upscales a test image.

    Raises:
        NotReady: ``probe`` fails, or is not answered although the server, or a process of the model, rests.
    """
    executor = ThreadPoolExecutor(1)
    answer = executor.submit(probe)
    executor.shutdown(wait=False)
    last: dict[int, float] = {}
    rested: Counter[int] = Counter()
    while not run.stopping.is_set():
        try:
            answer.result(REST_LIMIT / 2)
        except TimeoutError:
            now = busy_seconds(run.server.pid)
            # the first time, after half the limit, there is nothing to compare with: most images are answered before
            taken = {pid: seconds - last[pid] for pid, seconds in now.items() if pid in last}
            if last and sum(taken.values()) < BUSY_SHARE * REST_LIMIT / 2:
                raise NotReady(f"a test image is not answered within {REST_LIMIT:g} s, and no model works") from None
            for pid, name in model_processes(run.server.pid).items():
                rests = name == MODEL and taken.get(pid, 1) < REST_SHARE * REST_LIMIT / 2
                rested[pid] = rested[pid] + 1 if rests else 0
                if rested[pid] * REST_LIMIT / 2 >= HANG_LIMIT:
                    raise NotReady(f"a process of model '{MODEL}' hangs") from None
            last = now
        else:
            return


def begin(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    check: Callable[[subprocess.Popen[bytes]], str | None],
    probe: Callable[[], object] | None,
) -> tuple[Run, threading.Thread]:
    """Start a server and a thread that checks it until it stops."""
    door = Door()
    run = Run(start(command, {**environment, **door.environment}), door)

    def observe() -> None:
        try:
            line = check(run.server)
            run.models = model_processes(run.server.pid)
            run.ready.set()
            if line and not run.stopping.is_set():
                print(line, flush=True)
            while probe and not run.stopping.wait(PROBE_EVERY):
                probe_until_answered(run, probe)
        except NotReady as error:
            if run.server.poll() is None and not run.stopping.is_set():
                run.failures.append(error)

    observer = threading.Thread(target=observe, daemon=True)
    observer.start()
    return run, observer


def supervise(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    check: Callable[[subprocess.Popen[bytes]], str | None],
    *,
    restart: bool = False,
    probe: Callable[[], object] | None = None,
    keeps_models: bool = True,
) -> int:
    """Run a server in the foreground, sharing this process's output, until it and its child processes have ended.

    The first SIGINT or SIGTERM is forwarded once requests in progress have finished or, after ``DRAIN_LIMIT`` seconds,
    been refused (``pipeline.serving.drain``); a second one is forwarded immediately. Ctrl-C also reaches the server
    directly.

    Args:
        command: the server's command line.
        environment: additional environment variables.
        check: wait until the server is ready and return a line to print; raise NotReady.
        restart: whether to restart a server that was ready and ends, loses a model's process, or fails ``probe``.
        probe: called every ``PROBE_EVERY`` seconds; raises NotReady.
        keeps_models: whether the server never unloads a model, so that a model's process that ends has died.

    Returns:
        The server's exit status, 128 + n if ended by signal n; 1 if stopped because it was not ready, or if it cannot
        be restarted.

    Raises:
        OSError: the server cannot be run.
    """
    # blocked in every thread from here on, so that no signal is lost while nobody waits for it
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    adopt_orphans()
    restarts: Counter[str] = Counter()
    attempts = 0
    while True:
        counts = " ".join(f"{reason}={count}" for reason, count in sorted(restarts.items()))
        run, observer = begin(command, {**environment, RESTARTS_VARIABLE: counts}, check, probe)
        found = watch(run, keeps_models)
        ended = run.server.poll() is not None
        if isinstance(found, Problem):
            end(run, signal.SIGKILL, DRAIN_LIMIT / 2)  # it may not be able to stop by itself
        else:
            end(run, found or signal.SIGTERM)
        observer.join(1)
        if isinstance(found, int):
            return 0 if run.server.returncode == TIMED_OUT else exit_status(run.server)
        if not restart or (found is None and not restarts):
            if run.failures and not ended:
                print(f"error: {run.failures[0]}", file=sys.stderr)
                return 1
            if run.server.returncode:
                print(f"error: the server ended with {ending(run.server)}; see its messages above", file=sys.stderr)
            return exit_status(run.server)
        attempts = 1 if time.monotonic() - run.began > STABLE else attempts + 1
        text = found.text if found else str(run.failures[0] if run.failures else f"it ended with {ending(run.server)}")
        if attempts > MAX_ATTEMPTS:
            print(f"error: the server cannot be restarted: {text}", file=sys.stderr)
            return 1
        if found:
            restarts[found.reason] += 1
        wait = 0.0 if attempts == 1 else min(MAX_PAUSE, 2.0 ** (attempts - 2))
        later = f" in {wait:g} s" if wait else ""
        print(f"restarting{later}: {text} (restart {sum(restarts.values())})", file=sys.stderr, flush=True)
        if wait and (number := next_signal(None, wait)):
            return 128 + number


def exit_status(server: subprocess.Popen[bytes]) -> int:
    """Return the server's status as a shell would."""
    return 128 - server.returncode if server.returncode < 0 else server.returncode
