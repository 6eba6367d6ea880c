"""Find out whether a server is ready: its ports, and a test image."""

from __future__ import annotations

import contextlib
import math
import socket
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from pipeline.interrupts import uninterrupted
from pipeline.presets import Preset
from pipeline.remote import infer
from pipeline.serving.access import Access, Certificate
from pipeline.spec import SCALE

Address = tuple[str, int]

OPEN = Access()
MODEL = "superres"
ANSWER_LIMIT = 60
"""Maximum seconds for the test image."""
STREAMS, RELEASE_LIMIT = 4, 1
"""Streams without requests that begin at a time, and maximum seconds for them."""
POLL = 0.02
"""Seconds between two checks of a starting server."""


class NotReady(Exception):
    """The server is not ready; the message states the reason, quoting the server if possible."""


def listens(address: Address) -> bool:
    """Whether the address accepts connections; 0.0.0.0 means this machine."""
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def wait_until_listening(
    server: subprocess.Popen[bytes], addresses: Sequence[Address], limit: float = math.inf
) -> None:
    """Wait until the server accepts connections at all addresses, which Triton does once its models are loaded.

    Args:
        server: process of the server or its supervisor.
        addresses: addresses in the order in which Triton opens them: gRPC, HTTP, metrics.
        limit: maximum seconds to wait.

    Raises:
        NotReady: the server ends, takes longer, or another process takes a port.
    """
    deadline = time.monotonic() + limit
    while True:
        # the last is checked first: if it is open and an earlier one then is not, it is not the server's
        open_ = [listens(address) for address in reversed(addresses)][::-1]
        if all(open_):
            return
        if server.poll() is not None:
            raise NotReady(f"the server stopped with status {server.returncode}")
        if any(open_[open_.index(False) :]):
            port = addresses[open_.index(True, open_.index(False))][1]
            raise NotReady(f"port {port} was taken by another process meanwhile")
        if time.monotonic() > deadline:
            raise NotReady(f"the server is not ready after {limit:g} seconds")
        time.sleep(POLL)


def connect(address: Address, certificate: Certificate | None) -> tritonclient.grpc.InferenceServerClient:
    """Return a gRPC connection to a server of this machine, never through a proxy."""
    host, port = address
    arguments: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
    tls: dict[str, Any] = {}
    if certificate:
        arguments.append(("grpc.ssl_target_name_override", certificate.name))
        tls = {"ssl": True, "root_certificates": str(certificate.cert)}
    with uninterrupted():  # tritonclient cannot be deleted half made
        return tritonclient.grpc.InferenceServerClient(f"{host}:{port}", channel_args=arguments, **tls)


def upscale_one(
    address: Address,
    preset: Preset,
    access: Access = OPEN,
    request_id: str = "",
    *,
    side: int | None = None,
    limit: float = ANSWER_LIMIT,
    **options: int,
) -> float:
    """Upscale a test image with model ``superres``; return the seconds it takes.

    Args:
        address: where the server listens.
        preset: what it serves.
        access: the server's certificate and token.
        request_id: ID of the request.
        side: pixels per side of the image. None: the preset's.
        limit: maximum seconds to wait.
        **options: the model's options.

    Raises:
        NotReady: the request fails or is not answered in time, or the result is invalid.
    """
    side = side or preset.data.lr_size
    inputs = {"image": np.tile(np.linspace(0, 1, side, dtype=np.float32), (1, side, 1))}
    inputs |= {name: np.array([[value]], np.int32) for name, value in options.items()}
    began = time.monotonic()
    with connect(address, access.certificate) as client:
        try:
            (upscaled,) = infer(
                client,
                MODEL,
                inputs,
                ["upscaled"],
                timeout=limit,
                headers=access.headers(),
                request_id=request_id,
            )
        except InferenceServerException as error:
            raise NotReady(f"a {side}×{side} image fails: {' '.join(error.message().split())}") from error
    if upscaled.shape != (1, SCALE * side, SCALE * side):
        raise NotReady(f"a {side}×{side} image becomes one of shape {upscaled.shape[1:]}, not {SCALE} times the size")
    low, high = upscaled.min(), upscaled.max()
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise NotReady(f"the result of a {side}×{side} image must be 0–1, got values from {low:g} to {high:g}")
    return time.monotonic() - began


def release_messages(address: Address, access: Access) -> None:
    """Have Triton give back the memory of the last streams' messages, which it keeps until others begin.

    Those of an image of 2048² take half a gigabyte. The streams that begin here have no request. Errors are ignored.
    """
    with connect(address, access.certificate) as client, contextlib.suppress(grpc.RpcError):
        # the client's own method runs one at a time, but each of Triton's threads keeps messages
        stream = partial(client._client_stub.ModelStreamInfer, timeout=RELEASE_LIMIT)
        metadata = tuple(access.headers().items())
        for responses in [stream(iter(()), metadata=metadata) for _ in range(STREAMS)]:
            list(responses)
