"""A server as a child: its exit status, the signals, and its end with this process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from pipeline import ROOT
from pipeline.serving import supervisor
from pipeline.serving.drain import Door
from pipeline.serving.probe import NotReady
from pipeline.serving.supervisor import Run
from tests.conftest import wait_for

SUPERVISE = """
import sys
from pipeline.serving.probe import NotReady
from pipeline.serving.supervisor import supervise

def check(server):
    if "fails" in sys.argv[1]:
        raise NotReady("no image")
    return "ready"

sys.exit(supervise(sys.argv[2:], {}, check))
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def supervise(*command: str, check: str = "passes") -> subprocess.Popen[str]:
    return start(SUPERVISE, check, *command)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "status", "line"),
    [
        ("exit 0", 0, ""),
        ("exit 3", 3, "error: the server ended with status 3; see its messages above\n"),
        ("kill -9 $$", 137, "error: the server ended with signal 9; see its messages above\n"),
    ],
)
def test_the_servers_status_is_the_commands(script: str, status: int, line: str) -> None:
    process = supervise("sh", "-c", script)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (status, line)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_whenever_it_comes(number: signal.Signals) -> None:
    process = supervise("sleep", "60")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)  # while nobody waits for the server yet
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (128 + number, "")


WORK = """
import sys, time
from pipeline.serving.drain import Closed, working
try:
    while True:
        with working():
            print("begun", flush=True)
            time.sleep(float(sys.argv[1]))
            print("ended", flush=True)
except Closed:
    print("refused", flush=True)
    time.sleep(60)
"""


def test_what_is_under_way_ends_and_nothing_begins_before_the_server_hears_a_signal() -> None:
    process = supervise(sys.executable, "-c", WORK, "0.3")
    assert process.stdout is not None
    lines = {process.stdout.readline(), process.stdout.readline()}
    assert lines == {"ready\n", "begun\n"}
    process.terminate()
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (128 + signal.SIGTERM, "")
    assert output in ("ended\n", "ended\nrefused\n")


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a process has yet to take a signal."""
    mask = re.search(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert mask is not None
    return bool(int(mask[1], 16) >> (number - 1) & 1)


def test_a_second_signal_does_not_wait() -> None:
    process = supervise(sys.executable, "-c", WORK, "60")
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {"ready\n", "begun\n"}
    process.terminate()
    wait_for(lambda: not is_pending(process.pid, signal.SIGTERM))  # two at once would be one
    process.terminate()
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (128 + signal.SIGTERM, "", "")


def test_a_server_that_fails_its_check_is_stopped() -> None:
    process = supervise("sleep", "60", check="fails")
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (1, "", "error: no image\n")


@pytest.mark.slow
def test_what_the_server_leaves_behind_is_ended(tmp_path: Path) -> None:
    process = supervise("sh", "-c", f"sleep 60 & echo $! > {tmp_path / 'pid'}; kill -9 $$")
    process.communicate(timeout=20)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_the_server_ends_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    process = supervise("sh", "-c", f"trap 'touch {ended}; exit' TERM; echo trapped; while :; do sleep 0.05; done")
    assert process.stdout is not None
    said = ""
    # both write to one pipe, also into each other's lines
    while not ("ready" in said and "trapped" in said):
        letter = process.stdout.read(1)
        assert letter, f"it ended, and said {said!r}"
        said += letter
    process.kill()
    process.communicate(timeout=20)
    wait_for(ended.exists)


SERVER, OTHER = 1, 2


def ask(monkeypatch: pytest.MonkeyPatch, busy: dict[int, list[float]]) -> None:
    """Ask a server that answers when the seconds for which its processes are busy run out."""
    answered = threading.Event()
    left = {pid: iter([0, *seconds]) for pid, seconds in busy.items()}
    total = dict.fromkeys(busy, 0.0)

    def look(_: int) -> dict[int, float]:
        for pid, seconds in left.items():
            if (taken := next(seconds, None)) is None:
                answered.set()
            total[pid] += 1 if taken is None else taken
        return dict(total)

    monkeypatch.setattr(supervisor, "REST_LIMIT", 0.01)
    monkeypatch.setattr(supervisor, "HANG_LIMIT", 0.015)
    monkeypatch.setattr(supervisor, "busy_seconds", look)
    monkeypatch.setattr(supervisor, "model_processes", lambda _: dict.fromkeys(busy.keys() - {SERVER}, "superres"))
    try:
        supervisor.probe_until_answered(Run(MagicMock(pid=SERVER), Door()), answered.wait)
    finally:
        answered.set()


def test_a_busy_server_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ask(monkeypatch, {SERVER: [0.01] * 9})


def test_a_server_that_rests_and_does_not_answer_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotReady, match=r"0\.01 s"):
        ask(monkeypatch, {SERVER: [0.01, 0, 0]})


def test_a_process_that_rests_while_others_work_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotReady, match="superres"):
        ask(monkeypatch, {SERVER: [0.01] * 9, OTHER: [0.01, 0, 0, 0, 0]})


def test_a_process_may_rest_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    ask(monkeypatch, {SERVER: [0.01] * 9, OTHER: [0, 0, 0.01] * 3})


def test_a_test_image_that_fails_is_told() -> None:
    def fail() -> None:
        raise NotReady("no image")

    with pytest.raises(NotReady, match="no image"):
        supervisor.probe_until_answered(Run(MagicMock(pid=os.getpid()), Door()), fail)


COUNT = """
import sys
import threading
from pathlib import Path
from pipeline.serving import supervisor
from pipeline.serving.probe import NotReady

supervisor.PROBE_EVERY = 0.05
supervisor.MAX_PAUSE = 0.01
probes = iter(sys.argv[1].split())

def check(server):
    print("ready", flush=True)

def probe():
    if next(probes, "right") == "wrong":
        raise NotReady("no image")

sys.exit(supervisor.supervise(sys.argv[2:], {}, check, restart=True, probe=probe))
"""


def restarting(*command: str, probes: str = "") -> subprocess.Popen[str]:
    return start(COUNT, probes, *command)


@pytest.mark.parametrize(
    ("script", "reason"),
    [("exit 3", "the server ended with status 3"), ("kill -9 $$", "the server ended with signal 9")],
)
def test_a_server_that_ends_is_started_again(tmp_path: Path, script: str, reason: str) -> None:
    once = f"test -e {tmp_path / 'once'} && exec sleep 60; touch {tmp_path / 'once'}; sleep 0.3; {script}"
    process = restarting("sh", "-c", once)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors == f"restarting: {reason} (restart 1)\n"


@pytest.mark.slow
def test_a_server_whose_answers_are_wrong_is_started_again() -> None:
    process = restarting("sleep", "60", probes="right wrong right")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert errors == "restarting: no image (restart 1)\n"


def test_a_server_that_ends_again_and_again_is_given_up() -> None:
    process = restarting("sh", "-c", "sleep 0.02; exit 3")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: the server cannot be restarted: ")
