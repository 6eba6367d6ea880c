"""Requests with mistakes: a small number of what `python -m tests.fuzz_server` sends."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.models import models
from pipeline.presets import DEFAULT
from pipeline.spec import Model
from tests.conftest import RunningServer
from tests.fuzz_server import (
    ALLOWED,
    Input,
    Request,
    Target,
    broken_request,
    descendants,
    fuzz,
    judge,
    judge_answer,
    valid_request,
)

MODELS = models(DEFAULT)


@pytest.mark.slow
def test_a_server_answers_or_refuses_every_request_and_works_on_as_before() -> None:
    report = fuzz(300, seed=0)
    assert report.faults == []
    counts = Counter[str]()
    for (_, _, outcome), number in report.counts.items():
        counts[outcome] += number
    assert sum(counts.values()) == 300
    assert counts["valid"] == 6
    assert counts["answered"] > 20, "or the mistakes are too great to reach a model"
    assert counts["refused"] > 100


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_requests_are_valid_before_they_are_broken(server: RunningServer, model: Model) -> None:
    target = Target(server.url("grpc"), server.http)
    rng = np.random.default_rng(0)
    for way in ("grpc",) if model.decoupled else ("grpc", "binary", "json"):
        request = valid_request(model, rng)
        request.way = way
        # options that only some combinations of others allow, or a plan that is not there
        request.inputs = [one for one in request.inputs if one.dtype != "BYTES"]
        assert target.send(request) == "answered", request
    target.channel.close()


def test_a_request_of_a_number_is_always_the_same() -> None:
    assert [broken_request(n, 3, MODELS) for n in range(50)] == [broken_request(n, 3, MODELS) for n in range(50)]
    assert broken_request(0, 3, MODELS) != broken_request(0, 4, MODELS)


def test_what_counts_as_a_fault() -> None:
    request = Request("superres", [], [], "grpc")
    assert judge(request, "INVALID_ARGUMENT", "'steps' must be 1–300, got 0") == "refused"
    assert judge(request, "UNAVAILABLE", "Request for unknown model: 'none' is not found") == "refused"
    assert judge(request, "DEADLINE_EXCEEDED", "") == "hang"
    for status, message in (("UNAVAILABLE", "Socket closed"), ("INTERNAL", "list index out of range")):
        assert judge(request, status, message) not in ALLOWED
    assert judge(Request("unet_onnx", [], [], "grpc"), "INTERNAL", "onnxruntime: shapes differ") == "failed"
    assert judge(Request("unet_onnx", [], [], "grpc"), "INTERNAL", "the stub process died") not in ALLOWED


def test_an_answer_of_another_size_or_out_of_range_is_a_fault() -> None:
    request = Request("superres", [Input("image", "FP32", [1, 2, 2], b"")], [], "grpc")
    right = np.full(64, 0.5, np.float32).tobytes()
    assert judge_answer(request, {"upscaled": ("FP32", [1, 8, 8], right)}) == "answered"
    assert judge_answer(request, {"upscaled": ("FP32", [1, 4, 16], right)}) not in ALLOWED
    assert (
        judge_answer(request, {"upscaled": ("FP32", [1, 8, 8], right[:-4] + np.float32(np.nan).tobytes())})
        not in ALLOWED
    )


@pytest.mark.slow
def test_a_server_that_ends_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(_: Target, __: Request) -> str:
        for pid in descendants(os.getpid()) - others:
            with contextlib.suppress(OSError):  # it ended meanwhile
                if Path(f"/proc/{pid}/comm").read_text().strip() == "tritonserver":
                    os.kill(pid, signal.SIGKILL)
        return "refused"

    others = descendants(os.getpid())
    monkeypatch.setattr(Target, "send", kill)
    report = fuzz(2, seed=0)
    assert any("processes ended" in fault or "UNAVAILABLE" in fault for fault in report.faults)
