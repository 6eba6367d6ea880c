"""The node's state by HTTP: /healthz, /queue (JSON), /metrics (Prometheus)."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from client.node.journal import Journal
from client.node.queue import Queue

COUNTERS = {
    "accepted": "Images answered with success.",
    "duplicates": "Images received again.",
    "refused": "Images, or classes of images, refused.",
    "rejected_associations": "Associations rejected because of an AE title.",
    "rejected_connections": "Connections without the TLS that is required.",
    "upscaled": "Images upscaled.",
    "sent": "Images whose results were sent.",
    "dead": "Images given up.",
    "retries": "Failed tries of images that will be tried again.",
}
PARTS = ("server", "destination", "disk")


class StatusPage:
    """Answers GET requests.

    Args:
        queue: the images.
        journal: counters and problems.
        alive: whether all threads of the node run.
    """

    def __init__(self, queue: Queue, journal: Journal, alive: Callable[[], bool]) -> None:
        self.queue, self.journal, self.alive = queue, journal, alive

    def answer(self, path: str) -> tuple[int, str, str]:
        """Return the status, type and text of a page."""
        try:
            if path == "/healthz":
                self.queue.counts()
                return (200, "text/plain", "ok\n") if self.alive() else (503, "text/plain", "a thread has ended\n")
            if path == "/queue":
                return 200, "application/json", json.dumps(self.state(), indent=2) + "\n"
            if path == "/metrics":
                return 200, "text/plain; version=0.0.4", self.metrics()
        except sqlite3.Error as error:
            return 503, "text/plain", f"the queue cannot be read: {error}\n"
        return 404, "text/plain", "there are /healthz, /queue and /metrics\n"

    def state(self) -> dict[str, object]:
        return {
            "images": self.queue.counts(),
            "oldest_seconds": round(self.queue.oldest(), 1),
            "down": dict(self.journal.problems),
            "problems": self.queue.problems(),
            "refused": list(self.journal.refused),
        }

    def metrics(self) -> str:
        lines = ["# HELP cxr_node_images Images in the queue, by state.", "# TYPE cxr_node_images gauge"]
        lines += [f'cxr_node_images{{state="{state}"}} {count}' for state, count in self.queue.counts().items()]
        lines += [
            "# HELP cxr_node_oldest_seconds Age of the oldest image that is not sent.",
            "# TYPE cxr_node_oldest_seconds gauge",
            f"cxr_node_oldest_seconds {self.queue.oldest():.1f}",
            "# HELP cxr_node_down Whether the server, the destination or the disk cannot be used.",
            "# TYPE cxr_node_down gauge",
            *(f'cxr_node_down{{part="{part}"}} {int(part in self.journal.problems)}' for part in PARTS),
        ]
        for name, text in COUNTERS.items():
            lines += [f"# HELP cxr_node_{name}_total {text}", f"# TYPE cxr_node_{name}_total counter"]
            lines.append(f"cxr_node_{name}_total {self.journal.counts[name]}")
        return "\n".join(lines) + "\n"

    @contextmanager
    def running(self, host: str, port: int) -> Iterator[int]:
        """Serve for the duration of the block; yield the port. Raises OSError if it is taken."""
        page = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                status, kind, text = page.answer(self.path.partition("?")[0])
                data = text.encode()
                self.send_response(status)
                for name, value in (("Content-Type", kind), ("Content-Length", str(len(data)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Not logged: probes come every few seconds."""

        with ThreadingHTTPServer((host, port), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True, name="status").start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()
