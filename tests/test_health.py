"""The health check of containers."""

from __future__ import annotations

import pytest

from pipeline.serving import health
from pipeline.serving.local_server import free_ports
from tests.conftest import RunningServer


def test_a_server_that_upscales_is_healthy(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert health.main(["--port", str(server.grpc)]) == 0
    assert capsys.readouterr().out.startswith("ready (an image took ")


def test_no_server_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    assert health.main(["--port", str(port)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: the server at 127.0.0.1:{port} is not ready: ")
    assert err.count("\n") == 1
