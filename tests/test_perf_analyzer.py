"""The real perf_analyzer against the real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import perf_analyzer
from benchmarks.perf_analyzer import Measurement, PerfAnalyzerError
from pipeline import ROOT
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


HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency\n"
)
ROW = "2,155.196,92,2457,628,513,196635,1668,3,203055,224928,233977,280406\n"


def test_reads_a_recorded_report(tmp_path: Path) -> None:
    (tmp_path / "report.csv").write_text(HEADER + ROW + "\n")
    found = perf_analyzer.read_report(tmp_path / "report.csv")
    assert found == Measurement(throughput=155.196, p50_ms=203.055, p99_ms=280.406, queue_ms=0.628, stable=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "wrote no report"),
        ("", "must have one load, got 0"),
        (HEADER + ROW + ROW, "must have one load, got 2"),
        ("Concurrency,Inferences/Second\n2,155\n", "has a missing or invalid value: 'p50 latency'"),
        (HEADER + "2,fast\n", "has a missing or invalid value"),
    ],
)
def test_reports_that_cannot_be_read(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "report.csv").write_text(text)
    with pytest.raises(PerfAnalyzerError, match=message):
        perf_analyzer.read_report(tmp_path / "report.csv")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "error: failed to get model metadata: Request for unknown model: 'unet_trt' is not found\n\n",
            "failed to get model metadata: Request for unknown model: 'unet_trt' is not found",
        ),
        (
            "Failed to maintain requested inference load. Worker thread(s) failed to generate concurrent requests.\n"
            "Thread [0] had error: [request id: <id_unknown>] inference request batch-size must be <= 16 for 'u'\n",
            "inference request batch-size must be <= 16 for 'u'",
        ),
        ("", "it printed nothing"),
    ],
)
def test_the_reason_is_told_in_a_line(output: str, expected: str) -> None:
    assert perf_analyzer.error_line(output) == expected


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A perf_analyzer that runs a shell script; ``$last`` is its last argument, the report."""
    binary = tmp_path / "perf_analyzer"
    binary.write_text(f"#!/bin/sh\nfor last; do :; done\n{script}\n")
    binary.chmod(0o755)
    monkeypatch.setattr(perf_analyzer, "find", lambda: (str(binary), {}))


def test_windows_that_disagree_are_measured_again_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unstable = "echo 'Failed to obtain stable measurement.' >&2; exit 2"
    fake(tmp_path, monkeypatch, f"case \"$*\" in *'-s 50 '*) {unstable};; esac\nprintf '{HEADER}{ROW}' > $last")
    found = perf_analyzer.measure(["-m", "unet_onnx"], requests=5)
    assert found.throughput == 155.196
    assert not found.stable


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "echo 'error: failed to get model metadata: Connection refused' >&2; exit 99")
    with pytest.raises(PerfAnalyzerError, match="^perf_analyzer failed: failed to get model metadata: Connection"):
        perf_analyzer.measure(["-m", "unet_onnx"], requests=5)


def test_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(perf_analyzer, "WHEEL", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert perf_analyzer.main() == 1
    assert capsys.readouterr().err.startswith("error: no perf_analyzer on PATH")
