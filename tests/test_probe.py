"""Whether a server is ready: its ports, and an answer that can be right."""

from __future__ import annotations

import signal
import socket
import subprocess
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.presets import BEST
from pipeline.serving.access import Access
from pipeline.serving.probe import NotReady, release_messages, upscale_one, wait_until_listening
from tests.conftest import RunningServer


def test_a_port_that_another_process_took_meanwhile_is_named() -> None:
    with subprocess.Popen(["sleep", "60"]) as server, socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()
        with pytest.raises(NotReady, match=f"port {taken[1]} was taken by another process meanwhile"):
            wait_until_listening(server, [("127.0.0.1", 1), taken])
        server.kill()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.full((1, 256, 256), np.nan), "must be 0–1, got values from nan to nan"),
        (np.full((1, 256, 256), 1.5), r"must be 0–1, got values from 1\.5 to 1\.5"),
        (np.zeros((1, 64, 64)), r"becomes one of shape \(64, 64\), not 4 times the size"),
    ],
)
def test_an_answer_that_cannot_be_right_is_none(
    answer: NDArray[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = MagicMock(return_value=MagicMock(as_numpy=lambda _: answer))
    monkeypatch.setattr("tritonclient.grpc.InferenceServerClient.infer", infer)
    with pytest.raises(NotReady, match=message):
        upscale_one(("127.0.0.1", 1), BEST)


def test_a_server_that_does_not_listen_is_given_up() -> None:
    with subprocess.Popen(["sleep", "60"]) as server:
        with pytest.raises(NotReady, match=r"not ready after 0\.1 seconds"):
            wait_until_listening(server, [("127.0.0.1", 1)], 0.1)
        server.kill()
        with pytest.raises(NotReady, match=f"stopped with status -{signal.SIGKILL}"):
            wait_until_listening(server, [("127.0.0.1", 1)])


@pytest.mark.slow
def test_releasing_messages_leaves_a_server_as_it_is(server: RunningServer) -> None:
    release_messages(("127.0.0.1", server.grpc), Access())
    upscale_one(("127.0.0.1", server.grpc), BEST)


def test_releasing_messages_of_no_server_does_nothing() -> None:
    release_messages(("127.0.0.1", 1), Access())
