"""Callers over HTTP that are gone, as the proxy in front reports them: Triton itself does not notice.

The proxy gives every request an ID in a header, and sends a line of its log, by UDP, when it has ended. The ID of one
that ended because its caller closed the connection becomes the name of an empty file, which models look for.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from pipeline.serving import ServeError
from pipeline.spec import GONE_VARIABLE, REQUEST_ID

REPORT = re.compile(rf" request=({REQUEST_ID}) end=C")
"""Log line of HAProxy about a request that its caller gave up: its termination state begins with C."""
MAX_KEPT = 1000
"""Maximum files: models look for those of their own requests at once."""


@contextlib.contextmanager
def reports(port: int) -> Iterator[dict[str, str]]:
    """Receive reports at a UDP port of this machine; yield the server's additional environment variables.

    Raises:
        ServeError: the port is taken, or is none.
    """
    if not 0 < port < 2**16:
        raise ServeError(f"--proxy-reports must be 1 to 65535, got {port}")
    with tempfile.TemporaryDirectory(prefix="cxr-gone-") as folder, socket.socket(type=socket.SOCK_DGRAM) as receiver:
        try:
            receiver.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServeError(f"--proxy-reports: cannot listen at UDP port {port}: {error.strerror}") from error
        # a signal must not end this process by reaching the thread, which inherits what is blocked
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        threading.Thread(target=receive, args=(receiver, Path(folder)), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield {GONE_VARIABLE: folder}


def receive(receiver: socket.socket, folder: Path) -> None:
    """Keep the IDs of the latest requests whose callers are gone, until the socket is closed."""
    kept: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            if found := REPORT.search(receiver.recv(65_535).decode("ascii", "replace")):
                kept.append(folder / found[1])
                kept[-1].touch()
            if len(kept) > MAX_KEPT:
                kept.pop(0).unlink(missing_ok=True)
