"""Callers that are gone, as the proxy reports them."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

import pytest

from pipeline.backends.reported import is_reported
from pipeline.serving import ServeError, gone
from pipeline.serving.local_server import free_ports
from pipeline.spec import GONE_VARIABLE
from tests.conftest import wait_for


def line(request_id: str, end: str) -> bytes:
    """A line of the proxy's log."""
    return f"127.0.0.1 one POST /v2/models/superres/infer status=400 ms=9 request={request_id} end={end}".encode()


def test_requests_that_their_callers_gave_up_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gone, "MAX_KEPT", 2)
    (port,) = free_ports(1)
    ids = [str(uuid.uuid4()) for _ in range(5)]
    with gone.reports(port) as environment, socket.socket(type=socket.SOCK_DGRAM) as proxy:
        monkeypatch.setattr(os, "environ", environment)
        for request_id, end in zip(ids, ("CH--", "----", "CD--", "sH--", "CL--"), strict=True):
            proxy.sendto(line(request_id, end), ("127.0.0.1", port))
        proxy.sendto(b"\xff request=../../x end=CH--", ("127.0.0.1", port))
        wait_for(lambda: is_reported(ids[4]))
        assert [is_reported(request_id) for request_id in ids] == [False, False, True, False, True], "the last two"
        folder = Path(environment[GONE_VARIABLE])
        assert len(list(folder.iterdir())) == 2
    assert not folder.exists()


def test_only_ids_of_the_proxy_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GONE_VARIABLE, str(tmp_path))
    (tmp_path / "x").touch()
    assert not any(map(is_reported, ("x", "", ".", "..", str(uuid.uuid4()))))


def test_without_reports_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GONE_VARIABLE, raising=False)
    assert not is_reported(str(uuid.uuid4()))


def test_a_port_that_is_taken() -> None:
    (port,) = free_ports(1)
    with gone.reports(port), pytest.raises(ServeError, match=f"{port}.* in use"), gone.reports(port):
        pass


def test_a_port_that_is_none() -> None:
    with pytest.raises(ServeError, match="must be 1 to 65535, got 70000"), gone.reports(70000):
        pass
