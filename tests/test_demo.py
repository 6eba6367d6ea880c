"""The demonstration: its pictures, and that no process outlives it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.files import read_image
from pipeline import ROOT
from pipeline.method.images import downscale, psnr

pytestmark = pytest.mark.slow


def start(out: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "client.demo", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def server_processes(out: Path) -> list[str]:
    """Command lines of living processes that belong to the server of the demonstration in ``out``."""
    found = re.search(r"--http-port=\d+", (out / "server.log").read_text())
    assert found is not None
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in lines if found[0] in line]


def test_makes_the_pictures_and_stops_the_server(tmp_path: Path) -> None:
    process = start(tmp_path)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    files = {"hr.png", "lr.png", "bicubic.png", "upscaled.png", "upscaled_compare.png", "uncertainty.png", "server.log"}
    files |= {"original.png", "preview.png", "preview_upscaled.png", "preview_detail.png"}
    assert {p.name for p in tmp_path.iterdir()} == files
    hr, lr, bicubic, upscaled = (read_image(tmp_path / f"{n}.png").image for n in ("hr", "lr", "bicubic", "upscaled"))
    assert lr.shape == (64, 64)
    assert hr.shape == bicubic.shape == upscaled.shape == (256, 256)
    assert psnr(downscale(hr).clip(0, 1), lr) > 45
    assert psnr(upscaled, hr) > 20, "the same chest"
    original, preview, larger = (
        read_image(tmp_path / f"{n}.png").image for n in ("original", "preview", "preview_upscaled")
    )
    assert preview.shape == (256, 256)
    assert larger.shape == (1024, 1024)
    assert psnr(larger, original) > 30
    for words in ("server started and ready", "client/upscale.py", "server stopped", "See ", "not for diagnosis"):
        assert words in output
    assert server_processes(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_stops_the_server(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path)
    log = tmp_path / "server.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "Started GRPCInferenceService" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert server_processes(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert server_processes(tmp_path) == []


def test_a_server_that_does_not_start_is_reported(tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "tritonserver"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no memory left; exit 3\n")
    broken.chmod(0o755)
    process = start(tmp_path / "demo", PATH=f"{broken.parent}:{os.environ['PATH']}")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("error: the server stopped with status 3")
    assert "no memory left" in errors
    assert "Traceback" not in errors
