"""Requests that end or fill an unprotected Triton, sent to the proxy, and calls that are closed to everyone."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from benchmarks.faults.load import IMAGE, Row
from benchmarks.faults.proxy import HAPROXY, TOKEN, proxying
from benchmarks.faults.server import Server, serving
from client import Client

INFER = "/v2/models/superres/infer"


def tensor(*shape: int, count: int = 1) -> bytes:
    """Return an inference request in JSON whose tensor has ``count`` values."""
    image = {"name": "image", "datatype": "FP32", "shape": shape, "data": [0.5] * count}
    return json.dumps({"inputs": [image]}).encode()


def attacks() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Yield (name, body, headers) of the requests."""
    yield "JSON tensor of shape [1, 2⁴⁰, 16] with one value", tensor(1, 2**40, 16), {}
    yield "JSON tensor of shape [2⁶², 1, 1] with one value", tensor(2**62, 1, 1), {}
    yield "JSON tensor of shape [1, 2⁶²+16, 1], 100,000 values", tensor(1, 2**62 + 16, 1, count=100_000), {}
    yield "JSON nested 200,000 deep", b'{"inputs":' + b"[" * 200_000 + b"]" * 200_000 + b"}", {}
    yield "a body in 1,000,000 chunks of a byte", b"1\r\nx\r\n" * 1_000_000, {"Transfer-Encoding": "chunked"}
    yield "100 MB in 100 kB of gzip", gzip.compress(bytes(100_000_000)), {"Content-Encoding": "gzip"}


def status_of(url: str, context: ssl.SSLContext, body: bytes, headers: dict[str, str]) -> int:
    """Return the status of the answer to an inference request with a valid token."""
    connection = http.client.HTTPSConnection(url, context=context, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest("POST", INFER)
        length = {} if "Transfer-Encoding" in headers else {"Content-Length": str(len(body))}
        for name, value in {"Authorization": f"Bearer {TOKEN}", **length, **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        with contextlib.suppress(OSError):  # it may be refused before all of it is sent
            connection.send(body)
        return connection.getresponse().status


def judged(row: Row, server: Server, all_refused: bool) -> Row:
    """Return the row, good if all was refused, nothing restarted, and the server upscales."""
    with Client(server.url, wait=60) as client:
        client.upscale(IMAGE)
        row.outcomes["right"] += 1
    restarts = len(server.restarts())
    row.note += f"; {restarts} restarts, then an image"
    row.good = all_refused and not restarts
    return row


def attack(folder: Path, seconds: float) -> Iterator[Row]:  # noqa: ARG001
    """Requests through the proxy, and administration without a token."""
    if not HAPROXY:
        yield Row("requests that end Triton", note="not run: needs haproxy")
        return
    with serving(folder) as server, proxying(HAPROXY, folder, server, server) as (url, certificate):
        context = ssl.create_default_context(cafile=str(certificate))
        for name, body, headers in attacks():
            row = Row(name)
            status = status_of(url, context, body, headers)
            row.note = f"{status} from the proxy"
            yield judged(row, server, 400 <= status < 500)
        with tritonclient.grpc.InferenceServerClient(server.url) as client:
            calls: dict[str, Callable[[], object]] = {
                "repository index": client.get_model_repository_index,
                "statistics": client.get_inference_statistics,
                "logging": lambda: client.update_log_settings({"log_info": False}),
                "trace": client.get_trace_settings,
                "shared memory": lambda: client.register_system_shared_memory("x", "/x", 16),
                "unloading a model": lambda: client.unload_model("superres"),
            }
            closed = [name for name, call in calls.items() if is_closed(call)]
        row = Row("administration without a token", note=f"closed: {', '.join(closed)}")
        yield judged(row, server, len(closed) == len(calls))


def is_closed(call: Callable[[], object]) -> bool:
    """Whether the server refuses the call because it is closed to this caller."""
    try:
        call()
    except InferenceServerException as error:
        return "restricted" in error.message()
    return False


SCENARIOS: dict[str, Callable[[Path, float], Iterator[Row]]] = {"attack": attack}
