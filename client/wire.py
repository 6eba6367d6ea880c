"""Call a Triton server over gRPC or HTTP; failures are ``NotServing`` or errors of ``client.errors``.

Both protocols are thread-safe. gRPC shares one connection between threads. HTTP opens one per request: an idle one
would delay a server's shutdown by half a minute, and a new one costs 0.3 ms.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc
import tritonclient.http
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

from client.errors import BadRequest, NotAllowed, ServerError
from pipeline.method.options import is_not_serving
from pipeline.remote import infer_inputs
from pipeline.spec import Model

SIZE = "Inference-Header-Content-Length"
Arrays = Mapping[str, NDArray[Any]]
"""Tensor name ⇒ array."""

RESTRICTED = ("This protocol is restricted", "This API is restricted")
"""How Triton's messages begin if the header is missing or wrong by which it restricts calls."""
FOREVER = 1e8
"""Seconds (three years) from which a limit counts as infinite."""
MAX_CONNECT = 20.0
"""Maximum seconds to open a connection."""
CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # find a returning server within a second; gRPC's default pauses grow to two minutes
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
]


class NotServing(Exception):
    """The server is not available: it cannot be reached, went away, or is starting or stopping."""


def late(url: str, limit: float) -> ServerError:
    """Return the error for a server that does not answer in time."""
    return ServerError(f"no answer from {url} within {limit:g} s")


def failure(url: str, status: str, message: str, *, has_token: bool = False) -> Exception:
    """Return the error for a status of gRPC or HTTP and its message; ``has_token``: whether a token was sent."""
    # Triton's own check of a header reports "unavailable" over gRPC, and never what it received
    if status in ("UNAUTHENTICATED", "401") or message.startswith(RESTRICTED):
        needed = "the server needs a token: give one (token, --token-file, CXR_TOKEN)"
        return NotAllowed(f"server {url}: {'the server refuses the token' if has_token else needed}")
    if status in ("PERMISSION_DENIED", "403"):
        return NotAllowed(f"server {url}: the server does not allow the call ({message})")
    # a proxy whose server died in the middle of an answer ends it without gRPC's status
    if status in ("UNAVAILABLE", "CANCELLED", "429", "502", "503") or message.startswith("Stream removed"):
        return NotServing(message)
    if status in ("INVALID_ARGUMENT", "400"):
        # older servers report any error as 400 over HTTP; the other messages may quote the request
        unknown = message.startswith("Request for unknown model")
        return NotServing(message) if unknown else BadRequest(message)
    return NotServing(message) if is_not_serving(message) else ServerError(f"server {url}: {message}")


def token_headers(token: str | None, protocol: str) -> dict[str, str]:
    """Return the headers that carry a token; over gRPC also in the one that Triton's restriction of protocols reads."""
    if token is None:
        return {}
    names = ("authorization", "triton-grpc-protocol-authorization") if protocol == "grpc" else ("authorization",)
    return dict.fromkeys(names, f"Bearer {token}")


def request_id() -> str:
    """Return a random ID, by which the server's log and audit record tell requests apart."""
    return uuid.uuid4().hex


def _limit(seconds: float) -> float | None:
    return seconds if seconds < FOREVER else None


def _typed(model: Model, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Return the model's inputs among the arrays, with their dtypes."""
    dtypes = {t.name: triton_to_np_dtype("BYTES" if t.dtype == "STRING" else t.dtype) for t in model.inputs}
    return {name: np.asarray(arrays[name]).astype(dtype) for name, dtype in dtypes.items() if name in arrays}


def _infer_request(model: Model, arrays: Arrays, outputs: Sequence[str], priority: int) -> Any:
    """Return the message of a request."""
    request = service_pb2.ModelInferRequest(model_name=model.name, id=request_id())
    if priority and model.preset:
        request.parameters["priority"].uint64_param = priority
    for name, array in _typed(model, arrays).items():
        request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        text = array.dtype == np.object_
        request.raw_input_contents.append(serialize_byte_tensor(array).item() if text else array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def _arrays(response: Any) -> dict[str, NDArray[Any]]:
    """Return the outputs in the message of an answer."""
    found = tritonclient.grpc.InferResult(response)
    return {output.name: found.as_numpy(output.name) for output in response.outputs}


class Grpc:
    """Calls over one gRPC channel. Limits are in seconds.

    Args:
        tls: whether to use TLS.
        ca: file of the certificates to trust; None: those that gRPC trusts.
        token: sent with every call.
        priority: level of requests for ``superres``; 0: the server's default.
    """

    def __init__(
        self, url: str, tls: bool = False, ca: str | None = None, token: str | None = None, priority: int = 0
    ) -> None:
        self._url, self._priority = url, priority
        self._headers = tuple(token_headers(token, "grpc").items())
        if tls:
            roots = None if ca is None else Path(ca).read_bytes()
            self._channel = grpc.secure_channel(url, grpc.ssl_channel_credentials(roots), CHANNEL)
        else:
            self._channel = grpc.insecure_channel(url, CHANNEL)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        """Close all connections; requests in progress fail."""
        self._channel.close()

    @contextlib.contextmanager
    def _translated(self, limit: float) -> Iterator[None]:
        """Turn an error of gRPC into one of this module."""
        try:
            yield
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise late(self._url, limit) from error
            details = error.details() or ""
            raise failure(self._url, error.code().name, details, has_token=bool(self._headers)) from error

    def _ask(self, method: Callable[..., Any], request: Any, limit: float) -> Any:
        with self._translated(limit):
            return method(request, metadata=self._headers, timeout=_limit(limit))

    def config(self, model: str, limit: float) -> dict[str, Any] | None:
        """Return a model's configuration; None if the model is not ready."""
        if not self._ask(self._stub.ModelReady, service_pb2.ModelReadyRequest(name=model), limit).ready:
            return None
        answer = self._ask(self._stub.ModelConfig, service_pb2.ModelConfigRequest(name=model), limit)
        return MessageToDict(answer.config, preserving_proto_field_name=True)

    def index(self, limit: float) -> list[dict[str, str]]:
        """Return the models of the server's repository: name, state, reason of the state."""
        answer = self._ask(self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest(), limit)
        return [MessageToDict(model) for model in answer.models]

    def infer(self, model: Model, arrays: Arrays, outputs: Sequence[str], limit: float) -> dict[str, NDArray[Any]]:
        """Run a model; inputs missing from ``arrays`` are not sent."""
        return _arrays(self._ask(self._stub.ModelInfer, _infer_request(model, arrays, outputs, self._priority), limit))

    def stream(
        self, model: Model, arrays: Arrays, outputs: Sequence[str], limit: float
    ) -> Generator[dict[str, NDArray[Any]], None, None]:
        """Run a decoupled model and yield its responses; closing the generator cancels the request."""
        request = _infer_request(model, arrays, outputs, self._priority)
        # errors as gRPC's status, with which the stream ends
        headers = (*self._headers, ("triton_grpc_error", "true"))
        call = self._stub.ModelStreamInfer(iter([request]), metadata=headers, timeout=_limit(limit))
        try:
            with self._translated(limit):
                for response in call:
                    if response.error_message:
                        raise failure(self._url, "INTERNAL", response.error_message)
                    if found := _arrays(response.infer_response):
                        yield found
        finally:
            call.cancel()


class Http:
    """The calls of ``Grpc``, except streams, over one HTTP connection per request.

    tritonclient only encodes and decodes the messages: its connections must not be shared or closed by other threads.

    Args:
        context: settings for TLS; None: without it.
        token: sent with every call.
    """

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext | None = None,
        token: str | None = None,
        priority: int = 0,
    ) -> None:
        self.host, self.port, self._priority = host, port, priority
        self._url = f"{f'[{host}]' if ':' in host else host}:{port}"
        self._context, self._headers = context, token_headers(token, "http")
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()
        self._closed = False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for connection in self._open:
                if connection.sock:
                    with contextlib.suppress(OSError):
                        # not that of TLS, which would take the connection from the thread that reads it
                        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _connection(self, limit: float) -> Iterator[http.client.HTTPConnection]:
        timeout = min(limit, MAX_CONNECT)
        if self._context is None:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        else:
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=self._context)
        with self._lock:
            self._open.add(connection)
        try:
            try:
                connection.connect()
            except (OSError, UnicodeError) as error:
                raise NotServing(str(error)) from error
            with self._lock:
                if self._closed:  # while connecting, when there was no socket to shut down
                    raise NotServing("the client is closed")
            connection.sock.settimeout(_limit(limit))
            yield connection
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _ask(
        self, method: str, path: str, limit: float, body: bytes = b"", json_size: int = 0
    ) -> tuple[int, int, bytes]:
        """Return status, JSON size (0 unless binary tensors follow) and body of the answer.

        ``json_size``: the same for ``body``.
        """
        headers = {"Connection": "close", **self._headers, **({SIZE: str(json_size)} if json_size else {})}
        with self._connection(limit) as connection:
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                return answer.status, int(answer.headers.get(SIZE, 0)), answer.read()
            except TimeoutError as error:
                # with an errno, it is the network's timeout, not ours
                raise (late(self._url, limit) if error.errno is None else NotServing(str(error))) from error
            except (OSError, http.client.HTTPException) as error:
                raise NotServing(str(error) or type(error).__name__) from error

    def _json(self, method: str, path: str, limit: float) -> Any:
        status, _, body = self._ask(method, path, limit)
        if status != 200:
            raise self._refusal(status, body)
        try:
            return json.loads(body)
        except ValueError as error:
            raise ServerError(f"server {self._url}: the answer to {method} {path} is not Triton's") from error

    def config(self, model: str, limit: float) -> dict[str, Any] | None:
        status, _, body = self._ask("GET", f"/v2/models/{model}/ready", limit)
        if status in (401, 403):
            raise self._refusal(status, body)
        if status != 200:
            return None
        config: dict[str, Any] = self._json("GET", f"/v2/models/{model}/config", limit)
        return config

    def index(self, limit: float) -> list[dict[str, str]]:
        models: list[dict[str, str]] = self._json("POST", "/v2/repository/index", limit)
        return models

    def infer(self, model: Model, arrays: Arrays, outputs: Sequence[str], limit: float) -> dict[str, NDArray[Any]]:
        body, size = tritonclient.http.InferenceServerClient.generate_request_body(
            infer_inputs(tritonclient.http, _typed(model, arrays)),
            outputs=[tritonclient.http.InferRequestedOutput(name) for name in outputs],
            priority=self._priority if model.preset else 0,
            # in microseconds: Triton does not notice that this caller is gone
            timeout=math.ceil(1e6 * limit) if model.preset and limit < FOREVER else None,
            request_id=request_id(),
        )
        began = time.monotonic()
        status, json_size, answer = self._ask("POST", f"/v2/models/{model.name}/infer", limit, body, size or 0)
        if status != 200:
            # the server, told the limit, may notice first that it has passed
            is_late = time.monotonic() - began >= limit
            raise late(self._url, limit) if is_late else self._refusal(status, answer)
        result = tritonclient.http.InferenceServerClient.parse_response_body(answer, header_length=json_size or None)
        return {name: result.as_numpy(name) for name in outputs}

    def _refusal(self, status: int, body: bytes) -> Exception:
        """Return the error for an HTTP answer."""
        try:
            message = json.loads(body)["error"]
        except (ValueError, LookupError, TypeError):
            message = f"HTTP status {status}"
        return failure(self._url, str(status), str(message), has_token=bool(self._headers))
