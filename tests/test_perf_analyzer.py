"""The real perf_analyzer against the real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import perf_analyzer
from pipeline.serve import ROOT
from tests.conftest import RunningServer


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("unet_onnx", ["--shape", "x:8,32,32", "--shape", "t:1"]),
        ("superres", ["--input-data", str(ROOT / "benchmarks" / "superres.json")]),
    ],
)
def test_measures_a_model(server: RunningServer, model: str, inputs: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.perf_analyzer",
        "-m",
        model,
        "-i",
        "grpc",
        "-u",
        server.url("grpc"),
        *inputs,
    ]
    options = ["--measurement-mode", "count_windows", "--measurement-request-count", "5", "-r", "5", "-s", "999"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert "infer/sec" in result.stdout, result.stdout + result.stderr


def test_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(perf_analyzer, "WHEEL", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert perf_analyzer.main() == 1
    assert capsys.readouterr().err.startswith("error: no perf_analyzer on PATH")
