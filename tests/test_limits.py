"""The floor of an image on this machine."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks import limits
from benchmarks.arithmetic import Arithmetic
from benchmarks.limits import Machine, Need
from pipeline.networks.unet import UNet
from pipeline.presets import BEST, PAPER
from tests.conftest import RunningServer

MACHINE = Machine(float32=10.0, bfloat16=40.0, int8=80.0, memory=5.0)


def test_a_layer_reads_its_input_and_weights_and_writes_its_output() -> None:
    with torch.device("meta"):
        layer, x = nn.Conv2d(2, 3, kernel_size=1), torch.empty(1, 2, 8, 8)
    assert limits.gigabytes_moved(lambda: layer(x)) == pytest.approx(4 * (2 * 64 + 3 * 64 + 2 * 3 + 3) / 1e9)


def test_what_lies_between_layers_is_free() -> None:
    x = torch.empty(1, 2, 8, 8, device="meta")
    assert limits.gigabytes_moved(lambda: nn.functional.silu(x + x)) == 0


def test_the_scarcer_of_arithmetic_and_memory_is_the_floor() -> None:
    nothing, some = Arithmetic(0.0, 0.0, 0.0), Arithmetic(unet=1.0, encoder=2.0, decoder=4.0)
    assert Need(some, nothing, steps=4).floor(MACHINE) == pytest.approx(1.0)
    assert Need(some, nothing, steps=4).floor(MACHINE, "bfloat16") == pytest.approx(0.25)
    assert Need(some, nothing, steps=4).floor(MACHINE, "int8") == pytest.approx(0.125)
    assert Need(nothing, some, steps=4).floor(MACHINE) == pytest.approx(2.0)
    assert Need(nothing, some, steps=4).floor(MACHINE, "bfloat16") == pytest.approx(1.0)
    assert Need(nothing, some, steps=4).floor(MACHINE, "int8") == pytest.approx(0.5)
    assert Need(some, some, steps=4).floor(MACHINE) == pytest.approx(2.0)


@pytest.mark.slow
def test_both_presets_with_their_own_steps() -> None:
    best, paper = limits.need(BEST, 64), limits.need(PAPER, 64)
    assert (best.steps, paper.steps) == (1, 10)
    assert best.floor(MACHINE) < paper.floor(MACHINE)
    weights = sum(4 * p.numel() for p in UNet(BEST.unet).parameters()) / 1e9
    assert best.traffic.unet > weights
    assert best.traffic.encoder == 0, "best needs no encoder at inference"


def test_the_better_of_two_measurements_of_the_machine() -> None:
    assert MACHINE.best(Machine(20.0, 30.0, 90.0, 4.5)) == Machine(20.0, 40.0, 90.0, 5.0)


def test_real_server(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "COPIED_BYTES", 2**20)
    monkeypatch.setattr(limits, "MATRIX_SIDE", 64)
    assert limits.main(["--url", server.url("grpc"), "--rounds", "1", "--side", "16"]) == 0
    text = capsys.readouterr().out
    figures = json.loads(text.splitlines()[-1])
    assert all(value > 0 for value in figures.values())
    for words in (
        "| best, decoder |",
        "| paper, encoder |",
        "| paper, 10 |",
        "| preset best |",
        "| same files, one process |",
    ):
        assert words in text


@pytest.mark.parametrize("arguments", [["--side", "65"], ["--rounds", "0"]])
def test_impossible_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        limits.main(arguments)
    assert "must be" in capsys.readouterr().err


@pytest.mark.usefixtures("impatient")
def test_nothing_answers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "measure_machine", lambda: MACHINE)
    assert limits.main(["--url", "localhost:1"]) == 1
    assert capsys.readouterr().err.startswith("error: no server ready at localhost:1")
