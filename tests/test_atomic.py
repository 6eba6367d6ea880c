"""Files that are written whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.atomic import atomic_write, remove_unfinished


def test_the_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path: Path) -> None:
    with atomic_write(path) as partial:
        partial.write_text("half")
        raise OSError("full")


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="^full$"):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_what_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_half(tmp_path / "nowhere" / "a.txt")


def test_what_a_killed_process_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline.atomic import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    others = [tmp_path / name for name in (".partial", ".00000000-1-1-00000000.partial", "a.partial")]
    for path in others:
        path.touch()
    with atomic_write(tmp_path / "b.txt") as partial:
        partial.touch()
        assert remove_unfinished(tmp_path) == 1
        assert sorted(tmp_path.iterdir()) == sorted([*others, partial])
    assert remove_unfinished(tmp_path / "nowhere") == 0
