"""The common setup of the trainings, and the metadata of weights."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch

from train import setup
from train.setup import Training, command, commit, compiles, machine, origin, workers_of


def test_weights_tell_of_commit_command_and_machine() -> None:
    told = origin("cpu")
    assert {"command", "machine", "date"} <= told.keys() <= {"commit", "command", "machine", "date"}
    assert str(told["machine"]).endswith(f" cores, torch {torch.__version__}")


def test_a_commit_is_dirty_where_the_sources_are(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ""
    monkeypatch.setattr(setup, "git", lambda verb, *_: {"rev-parse": "1234", "status": changes}[verb])
    assert commit() == "1234"
    changes = " M train/loop.py"
    assert commit() == "1234-dirty"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "commit" not in origin("cpu")


def test_the_command_is_without_the_folders_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", f"{tmp_path}/data/nih", "--out=/home/someone/mine", "--split", "70/20/10", "--lpips", "0.2"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/tune.py", *arguments])
    assert command().endswith(" --data data/nih --out=mine --split 70/20/10 --lpips 0.2")
    assert "/somewhere" not in command()


def test_the_machine_has_no_name() -> None:
    assert socket.gethostname() not in machine("cpu")


def test_workers_and_compilation_are_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers_of(Training(device="cpu"), 1) == 0
    assert not compiles(Training(device="cpu"))
    monkeypatch.setattr(setup, "choose_device", lambda _: "cuda")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    assert [workers_of(Training(), processes) for processes in (1, 2, 16)] == [12, 6, 0]
    assert workers_of(Training(workers=3), 1) == 3
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "gcc" else None)
    assert compiles(Training())
    assert not compiles(Training(compile="off"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert not compiles(Training()), "PyTorch compiles with a C compiler"


@pytest.mark.parametrize(
    ("device", "gpu", "processor", "precision"),
    [
        ("auto", True, False, "bf16"),
        ("cuda", True, False, "bf16"),
        ("cpu", True, False, "fp32"),
        ("cpu", True, True, "bf16"),
        ("auto", False, False, "fp32"),
        ("auto", False, True, "bf16"),
    ],
)
def test_the_precision_is_that_of_the_device(
    monkeypatch: pytest.MonkeyPatch, device: str, gpu: bool, processor: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(setup, "cpu_supports", lambda _: processor)
    assert Training(device=device).precision == precision
    assert Training(device=device, precision="fp16").precision == "fp16"
