"""What killed servers leave behind is told from what is in use, and removed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.owner import NAMESPACE
from pipeline.serving import processes
from pipeline.serving.processes import STUB, is_dead, model_processes, region_prefix, remove_leftovers
from tests.conftest import wait_for


@pytest.fixture
def ended() -> int:
    """The ID of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(processes, "SHARED_MEMORY", tmp_path)
    return tmp_path


def prefix_of(pid: int, began: str = "1") -> str:
    return f"cxr-superres-{NAMESPACE.stat().st_ino}-{pid}-{began}-"


@pytest.fixture
def stub(ended: int) -> Iterator[subprocess.Popen[bytes]]:
    """What looks like a model's process of a supervisor that has ended."""
    command = [STUB, "-c", "import time; time.sleep(60)", "/models/superres/1/model.py", f"{prefix_of(ended)}7"]
    process = subprocess.Popen(command, executable=sys.executable)
    yield process
    process.kill()
    process.wait()


def test_only_what_belongs_to_nobody_is_removed(regions: Path, ended: int, stub: subprocess.Popen[bytes]) -> None:
    left = [f"{prefix_of(ended)}a", f"{prefix_of(os.getpid())}of an earlier process with this ID"]
    kept = [f"{region_prefix()}mine", f"cxr-superres-1-{ended}-1-of another container", "sem.mp-1", "cxr-superres-"]
    for name in (*left, *kept):
        (regions / name).touch()
    wait_for(lambda: STUB.encode() in Path(f"/proc/{stub.pid}/cmdline").read_bytes())
    assert remove_leftovers() == (1, 2)
    assert sorted(path.name for path in regions.iterdir()) == sorted(kept)
    assert stub.wait(10) == -9
    assert remove_leftovers() == (0, 0)


def test_a_child_is_dead_once_it_ended_whether_or_not_its_parent_knows() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert not is_dead(process.pid)
    process.kill()
    wait_for(lambda: is_dead(process.pid))
    process.communicate()
    assert is_dead(process.pid)


def test_the_models_of_processes_are_told_from_their_commands(stub: subprocess.Popen[bytes]) -> None:
    wait_for(lambda: stub.pid in model_processes(os.getpid()))
    subprocess.run(["true"], check=True)
    assert set(model_processes(os.getpid())) == {stub.pid}


def test_without_shared_memory_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SHARED_MEMORY", tmp_path / "none")
    assert remove_leftovers() == (0, 0)
