"""What a Triton server's answers mean: those of a server that stops or starts are told from the rest."""

from __future__ import annotations

import errno
import os

import pytest

from client import wire
from client.errors import BadRequest, NotAllowed, ServerError
from pipeline.models import superres_model
from pipeline.presets import DEFAULT
from pipeline.serving.local_server import free_ports
from tests.conftest import answering


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("UNAVAILABLE", "Server not ready"),
        ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped accepting new inference requests"),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: Connection refused"),
        ("CANCELLED", "CANCELLED"),
        ("NOT_FOUND", "Request for unknown model: 'superres' has no available versions"),
        ("404", "Request for unknown model: 'superres' has no available versions"),
        ("400", "Request for unknown model: 'superres' is not found"),
        ("503", "Server not ready"),
        ("502", "HTTP status 502"),
        ("429", "too many requests from this address"),
        ("INTERNAL", "superres_onnx: Model superres_onnx - Error when running inference: Server not ready"),
        ("500", "Failed to check model readiness: Failed to process the request, message: Server not ready"),
    ],
)
def test_answers_of_a_server_that_does_not_serve_now(status: str, message: str) -> None:
    assert type(wire.failure("host:1", status, message)) is wire.NotServing


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("INVALID_ARGUMENT", "'sampler' must be one of ddpm, ddim, got 'Server not ready'", BadRequest),
        ("400", "'sampler' must be one of ddpm, ddim, got 'Server not ready'", BadRequest),
        ("INTERNAL", "unet_onnx: out of memory", ServerError),
        ("500", "unet_onnx: out of memory", ServerError),
        ("NOT_FOUND", "no such region", ServerError),
        ("404", "HTTP status 404", ServerError),
        ("RESOURCE_EXHAUSTED", "message larger than max", ServerError),
        ("504", "HTTP status 504", ServerError),
        ("UNAUTHENTICATED", "a valid token is required", NotAllowed),
        ("401", "HTTP status 401", NotAllowed),
        ("PERMISSION_DENIED", "the proxy does not allow this call", NotAllowed),
        ("403", "HTTP status 403", NotAllowed),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'authorization'", NotAllowed),
        ("403", "This API is restricted, expecting header 'authorization'", NotAllowed),
        ("400", "'sampler' must be one of ddpm, ddim, got 'This API is restricted'", BadRequest),
    ],
)
def test_other_answers(status: str, message: str, kind: type[Exception]) -> None:
    assert type(wire.failure("host:1", status, message)) is kind


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"", wire.NotServing),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", wire.NotServing),
        (b"no HTTP at all\r\n\r\n", wire.NotServing),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n<html>", wire.NotServing),
        (b"HTTP/1.1 200 OK\r\n\r\nno JSON", ServerError),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n<html>", NotAllowed),
        (b'HTTP/1.1 400 Bad Request\r\n\r\n{"error": "no"}', BadRequest),
        (b'HTTP/1.1 500 Oh\r\n\r\n["error"]', ServerError),
        (None, ServerError),
    ],
)
def test_http_connections(reply: bytes | None, kind: type[Exception]) -> None:
    with answering(reply) as port, pytest.raises(kind):
        wire.Http("127.0.0.1", port).index(0.2)


def test_a_refusal_after_the_limit_is_a_late_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was told the limit ends the work by itself, and may say so before its caller gives up."""
    refusal = b'{"error": "cancelled by the caller"}'
    connection = wire.Http("127.0.0.1", 1)
    monkeypatch.setattr(connection, "_ask", lambda *_: (400, 0, refusal))
    for limit, kind, words in ((0.0, ServerError, "no answer from .* within 0 s"), (60.0, BadRequest, "cancelled")):
        with pytest.raises(kind, match=words):
            connection.infer(superres_model(DEFAULT), {}, [], limit)


def test_http_connections_that_are_refused() -> None:
    (port,) = free_ports(1)
    with pytest.raises(wire.NotServing, match=os.strerror(errno.ECONNREFUSED)):
        wire.Http("127.0.0.1", port).index(1)


def test_a_token_is_sent_in_the_headers_that_are_read() -> None:
    assert wire.token_headers(None, "grpc") == {}
    assert wire.token_headers("abc", "http") == {"authorization": "Bearer abc"}
    assert wire.token_headers("abc", "grpc") == {
        "authorization": "Bearer abc",
        "triton-grpc-protocol-authorization": "Bearer abc",
    }
