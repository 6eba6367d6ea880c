"""Reading in another process: the same images, and nothing that a decoder does ends the caller."""

from __future__ import annotations

import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from client.files import read_image
from client.formats.source import FileError
from client.reader import Reader

# a process that answers as pipeline.reader does, but for files named after what befalls it
FATED = """
import os, sys, time
from pathlib import Path
from client import files, reader
read = files.read_image
def fated(path, *rest):
    if path.name == "crash.png": os.abort()
    if path.name == "hang.png": time.sleep(60)
    return read(path, *rest)
files.read_image = fated
reader.answer_all(sys.stdin.buffer, sys.stdout.buffer)
"""


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), pixels)
    return sorted(tmp_path.iterdir())


def test_images_and_errors_are_those_of_read_image(images: list[Path]) -> None:
    with Reader() as reader, ThreadPoolExecutor(4) as pool:
        for path, source in zip(images, pool.map(reader.read, images), strict=True):
            expected = read_image(path)
            np.testing.assert_array_equal(source.image, expected.image)
            assert (source.bits, source.notes) == (expected.bits, expected.notes)
        assert reader.read(images[0], None, 5).notes == ("downscaled ×5 to 6×4, by area",)
        with pytest.raises(FileError, match="none.png' does not exist"):
            reader.read(images[0].with_name("none.png"))


@pytest.mark.slow
def test_a_crash_and_a_hang_are_errors_of_their_file_alone(images: list[Path]) -> None:
    crash, hang = (images[0].with_name(name) for name in ("crash.png", "hang.png"))
    with Reader((sys.executable, "-c", FATED), limit=3) as reader:
        with pytest.raises(FileError, match=r"crash.png' is damaged: its decoder crashed \(SIGABRT\)"):
            reader.read(crash)
        assert reader.read(images[0]).bits == 8
        with pytest.raises(FileError, match="hang.png' was not read within 3 s"):
            reader.read(hang)
        assert reader.read(images[1]).bits == 8


def test_it_keeps_to_a_lower_limit_of_memory_that_it_is_given(images: list[Path]) -> None:
    code = (
        f"import pathlib; from client.reader import Reader; print(Reader().read(pathlib.Path({str(images[0])!r})).bits)"
    )
    command = f"ulimit -v 6000000; exec {sys.executable} -c {shlex.quote(code)}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stdout == "8\n", result.stderr


def test_a_process_that_does_not_start_is_not_the_files_fault(images: list[Path]) -> None:
    with Reader((sys.executable, "-c", "raise SystemExit(3)")) as reader:
        with pytest.raises(FileError, match=r"cannot be read: the reading process failed \(status 3\)"):
            reader.read(images[0])


@pytest.mark.slow
def test_the_process_ends_with_its_owner(images: list[Path]) -> None:
    code = (
        "import os, signal, pathlib; from client.reader import Reader; r = Reader(); "
        f"r.read(pathlib.Path({str(images[0])!r})); print(r._process.pid, flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    owner = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(owner.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}/cmdline").is_file() or not Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        subprocess.run(["sleep", "0.05"], check=True)
    pytest.fail("the reading process is still there")
