"""The server under load: what is measured, and what is told of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from benchmarks import serving
from benchmarks.perf_analyzer import Measurement, PerfAnalyzerError
from benchmarks.serving import Case, Sweep, Target
from client.api import MODEL
from pipeline.presets import BEST
from tests.conftest import RunningServer

SMALL = Sweep(batches=(1, 32), clients=(1,), shares=(0.8,), rounds=1, requests=3)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target("host:8001", "host:8000", BEST, tmp_path, plan=False, steps=1)


def option(case: Case, name: str) -> str:
    return case.arguments[case.arguments.index(name) + 1]


def test_both_denoisers_at_every_batch_that_the_models_take(target: Target) -> None:
    cases = list(serving.unet_cases(target, Sweep()))
    assert {option(case, "-b") for case in cases} == {"1", "2", "4", "8", "16"}
    assert [case.variant for case in cases[:2]] == ["unet_onnx", "unet_trt"]
    assert "x:8,32,32" in cases[0].arguments and "t:1" in cases[0].arguments


def test_a_request_holds_the_real_image_and_every_option(target: Target) -> None:
    """perf_analyzer's shared memory refuses a model whose optional inputs are not given."""
    onnx, trt = serving.superres_cases(target, SMALL)
    requests = [json.loads(Path(option(case, "--input-data")).read_text())["data"][0] for case in (onnx, trt)]
    assert [request["denoiser"] for request in requests] == [["onnx"], ["trt"]]
    assert set(requests[0]) == set(MODEL.input_names)
    assert requests[0]["image"]["shape"] == [64, 64]


def test_a_window_holds_every_client_twice(target: Target) -> None:
    cases = list(serving.superres_cases(target, Sweep(clients=(1, 32), requests=10)))
    assert [case.requests for case in cases] == [10, 10, 64, 64]


def test_protocols_with_and_without_shared_memory(target: Target) -> None:
    cases = [case for case in serving.protocol_cases(target, SMALL) if case.load.startswith("superres")]
    assert [case.variant for case in cases] == ["grpc", "http", "grpc, shared memory", "http, shared memory"]
    assert [option(case, "-u") for case in cases[:2]] == ["host:8001", "host:8000"]
    assert option(cases[2], "--output-shared-memory-size") == str(256 * 256 * 4)


def test_arrivals_are_a_share_of_the_saturated_rate(target: Target) -> None:
    constant, poisson = serving.poisson_cases(target, SMALL, saturated=10.0)
    assert option(poisson, "--request-rate-range") == option(constant, "--request-rate-range") == "8.000"
    assert option(poisson, "--request-distribution") == "poisson"


def measurement(throughput: float, p50: float = 10.0, p99: float = 20.0, stable: bool = True) -> Measurement:
    return Measurement(throughput, p50, p99, queue_ms=1.0, stable=stable)


CASE = Case("unet", "batch 1", "unet_trt", [], 3)


def test_ratios_are_those_of_the_same_round() -> None:
    first = [measurement(10), measurement(100), measurement(50)]
    found = [measurement(20), measurement(300), measurement(200)]
    row = serving.summary(CASE, found, first)
    assert row["of_first"] == 3.0
    assert row["per_s"] == 200.0
    assert row["p99/p50"] == 2.0
    assert row["note"] == ""


def test_an_unstable_round_is_told() -> None:
    assert (
        serving.summary(CASE, [measurement(1), measurement(1, stable=False)], [measurement(1)] * 2)["note"]
        == "unstable"
    )


def test_without_a_plan_its_rows_say_so(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(arguments: list[str], _: int) -> Measurement:
        asked.append(arguments)
        return measurement(5)

    monkeypatch.setattr(serving, "measure", fake)
    rows = serving.run(list(serving.unet_cases(target, SMALL)), rounds=2, plan=False)
    assert len(asked) == 2
    assert [row["note"] for row in rows] == ["", "no plan loaded"]
    assert "| batch 1 | unet_trt |  |  |  |  |  |  | no plan loaded |" in serving.tables(rows)


def test_files_hold_every_row(tmp_path: Path) -> None:
    rows = [
        serving.summary(CASE, [measurement(5)], [measurement(5)]),
        {"part": "superres", "load": "1 at once", "variant": "trt", "note": serving.NO_PLAN},
    ]
    serving.write(tmp_path, rows)
    assert json.loads((tmp_path / "serving.json").read_text()) == rows
    with open(tmp_path / "serving.csv", newline="") as file:
        assert [row["variant"] for row in csv.DictReader(file)] == ["unet_trt", "trt"]
    assert (tmp_path / "serving.png").read_bytes().startswith(b"\x89PNG")
    (panel,) = serving.plot(rows).axes  # type: ignore[union-attr]
    assert panel.get_title() == "unet", "what was not measured has no panel"


def test_real_server(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "QUICK", SMALL)
    url = ["--url", server.url("grpc"), "--http-url", server.url("http")]
    assert serving.main(["--part", "unet", "--quick", *url, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "skipped: batch 32, above the models' max_batch_size 16" in text
    onnx, trt = json.loads(text.splitlines()[-1])
    assert onnx["per_s"] > 0 and onnx["p99_ms"] >= onnx["p50_ms"]
    assert trt["note"] == "no plan loaded"


def test_what_was_measured_before_a_failure_is_kept(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_on_superres(arguments: list[str], _: int) -> Measurement:
        if "superres" in arguments:
            raise PerfAnalyzerError("perf_analyzer failed: connection refused")
        return measurement(5)

    monkeypatch.setattr(serving, "measure", fails_on_superres)
    assert serving.main(["--part", "unet", "superres", "--url", server.url("grpc"), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: superres, onnx, 1 at once: perf_analyzer failed: connection refused"
    )
    assert {row["part"] for row in json.loads((tmp_path / "serving.json").read_text())} == {"unet"}


def test_little_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "free_shared_memory", lambda: 7.0)
    assert serving.main(["--part", "protocols", "--out", str(tmp_path)]) == 1
    assert "must have 64 MB free for the part protocols, got 7 MB" in capsys.readouterr().err


def test_shared_memory_and_http_need_both_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serving.main(["--url", "localhost:1"])
    assert "--http-url" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        serving.main(["--out", str(tmp_path / "file")])
    assert "file': File exists" in capsys.readouterr().err


@pytest.mark.usefixtures("impatient")
def test_nothing_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serving.main(["--part", "unet", "--url", "localhost:1", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: no server ready at localhost:1")
