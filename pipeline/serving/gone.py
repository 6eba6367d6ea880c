"""Callers over HTTP that are gone, as the proxy in front reports them: Triton itself does not notice.

The proxy gives every request an ID in a header, and sends a line of its log, by UDP, when it has ended. The ID of one
that ended because its caller closed the connection becomes the name of an empty file, which models look for.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "CXR_SUPERRES_GONE"
"""Environment variable of the server with the files' folder; without it, nothing is known of callers."""
HEADER = "cxr-request"
"""Header, and parameter of Triton's requests, with the ID."""
ID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
REPORT = re.compile(rf" request=({ID}) .* end=C")
"""Line about a request that its caller ended: HAProxy's termination state begins with C."""
MAX_KEPT = 1000
"""Maximum files: models look for those of their own requests at once."""


@contextlib.contextmanager
def reports(port: int) -> Iterator[dict[str, str]]:
    """Receive reports at a UDP port of this machine; yield the server's additional environment variables.

    Raises:
        OSError: the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="cxr-gone-") as folder, socket.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", port))
        threading.Thread(target=receive, args=(receiver, Path(folder)), daemon=True).start()
        yield {VARIABLE: folder}


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


def is_reported(request_id: str) -> bool:
    """Whether the caller of the request with an ID from the proxy is gone; used by models."""
    folder = os.environ.get(VARIABLE)
    return bool(folder and re.fullmatch(ID, request_id)) and os.path.exists(f"{folder}/{request_id}")
