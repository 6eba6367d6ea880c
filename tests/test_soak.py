"""The endurance test: what it sees of a server, and what it makes of it."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import threading
from collections import Counter
from functools import partial

import pytest

from benchmarks import soak
from benchmarks.soak import Answers, Memory, SoakError
from client import Client, ServerError, ServerLost
from pipeline import ROOT
from tests.conftest import RunningServer, StartServer

NO_ERRORS: Counter[str] = Counter()


def test_processes_of_processes_are_found() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in soak.descendants(os.getpid())
        assert len(soak.descendants(child.pid)) == 1
        child.communicate(b"\n")
    assert soak.descendants(child.pid) == []


@pytest.mark.alone
def test_memory_that_is_taken_is_seen() -> None:
    before = soak.memory([os.getpid()])
    # pages of its own, for the heap may hold enough from before
    with mmap.mmap(-1, 30_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as taken:
        taken.write(bytes([1]) * len(taken))
        assert soak.memory([os.getpid()]).total - before.total == pytest.approx(30, abs=10)


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as child:
        pass
    with pytest.raises(SoakError, match=f"process {child.pid} of the server"):
        soak.memory([child.pid])


def test_every_request_is_sent_once_and_errors_are_counted() -> None:
    sent = []

    def call(number: int) -> None:
        sent.append(number)
        if number % 5 == 0:
            raise ServerError("out of luck")

    answers = soak.send(call, range(10, 30), rate=None, concurrency=3)
    assert sorted(sent) == list(range(10, 30))
    assert answers.errors == {"out of luck": 4}
    assert len(answers.seconds) == 16


def test_no_more_are_sent_once_the_server_is_gone() -> None:
    sent = []

    def call(number: int) -> None:
        sent.append(number)
        raise ServerLost("gone")

    answers = soak.send(call, range(100), rate=None, concurrency=1)
    assert sent == [0]
    assert answers.errors.total() == 100


def test_at_a_rate_requests_overlap_when_answers_take_longer() -> None:
    meeting = threading.Barrier(3, timeout=30)
    answers = soak.send(lambda _: meeting.wait(), range(3), rate=1000.0, concurrency=3)
    assert not answers.errors


def test_growth_and_drift_count_from_the_warm_up() -> None:
    memories = [Memory({"a": 10.0}, 1.0), Memory({"a": 15.0, "b": 5.0}, 2.0), Memory({"a": 20.0, "b": 5.0}, 2.0)]
    answers = Answers([0.1] * 50 + [0.2] * 50, NO_ERRORS, elapsed=5.0)
    figures = soak.summary(memories, answers, NO_ERRORS)
    assert figures["growth"] == 0.25
    assert figures["shm_growth"] == 0.0
    assert figures["drift"] == 1.0
    assert figures["requests_per_s"] == 20.0
    assert "| a | 10.0 | 15.0 | 20.0 |" in soak.report(figures, memories, NO_ERRORS)


def test_nothing_was_answered() -> None:
    figures = soak.summary([Memory({"a": 1.0}, 0.0)] * 3, Answers([], NO_ERRORS, 1.0), Counter({"no luck": 7}))
    assert figures["errors"] == 7
    assert "drift" not in figures
    assert "7 errors: no luck" in soak.report(figures, [Memory({"a": 1.0}, 0.0)] * 3, Counter({"no luck": 7}))


def test_real_server(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    address = ["--url", server.url("grpc"), "--pid", str(server.process.pid)]
    assert soak.main(["--requests", "60", "--side", "8", "--allowed-growth", "9", *address]) == 0
    text = capsys.readouterr().out
    for name in ("tritonserver", "superres", "unet_onnx", "vae_decoder"):
        assert f"| {name} |" in text
    figures = json.loads(text.splitlines()[-1])
    assert figures["errors"] == 0
    assert figures["shm_end_mb"] > 5
    assert soak.main(["--requests", "60", "--side", "8", "--allowed-growth", "-1", *address]) == 1
    assert "error: memory grew by more than -100%" in capsys.readouterr().err


def test_a_server_that_dies(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_server(ROOT / "model_repository")
    before = soak.memory

    def kill_after_the_start(pids: list[int]) -> Memory:
        found = before(pids)
        server.kill()
        return found

    monkeypatch.setattr(soak, "memory", kill_after_the_start)
    monkeypatch.setattr(soak, "Client", partial(Client, wait=1))
    arguments = ["--url", server.url("grpc"), "--pid", str(server.process.pid), "--requests", "30", "--side", "8"]
    assert soak.main(arguments) == 1
    assert "cannot inspect process" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--requests", "3"],
        ["--side", "1"],
        ["--rate", "0"],
        ["--concurrency", "0"],
        ["--url", "localhost:1"],
        ["--pid", "1"],
    ],
)
def test_impossible_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soak.main(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_no_such_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--url", "localhost:1", "--pid", "99999999"]) == 1
    assert (
        capsys.readouterr().err
        == "error: --pid must be the process of tritonserver, got 99999999, which does not exist\n"
    )
