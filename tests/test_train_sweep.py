"""The sweep: every ablation is one change, logged once, and an interrupted sweep goes on where it stopped."""

from __future__ import annotations

import csv
from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import patch

import pytest

from pipeline.presets import BEST, PRESETS
from tests.tiny import shrink
from train import sweep
from train.sweep import ABLATIONS, STEPS, base_of
from train.tune import Tuning
from train.unet import UNetTraining
from train.vae import VAETraining


def test_every_stage_begins_with_its_base_and_names_are_unique() -> None:
    assert len({ablation.name for ablation in ABLATIONS}) == len(ABLATIONS)
    for stage in STEPS:
        base = base_of(stage)
        assert base.name == f"{stage}-base"
        assert (base.options, base.preset) == ({}, BEST)
    order = [ablation.stage for ablation in ABLATIONS]
    assert order == sorted(order, key=list(STEPS).index), "a stage starts from the base of the one before"


def test_every_other_ablation_changes_something() -> None:
    for ablation in ABLATIONS:
        if ablation is not base_of(ablation.stage):
            training = {"vae": VAETraining, "unet": UNetTraining, "tune": Tuning}[ablation.stage]
            base = {f.name: f.default for f in fields(training)} | sweep.BASE[ablation.stage]
            changed = {name for name, value in ablation.options.items() if base[name] != value}
            assert changed or replace(ablation.preset, name="best") != BEST
            assert ablation.preset == BEST or ablation.preset.name.startswith("best-")


def test_every_ablation_sees_as_many_samples() -> None:
    plan = sweep.Sweep(Path(), None, Path(), "cpu", scale=1.0, seed=0, limit=1)
    for ablation in ABLATIONS:
        batch = ablation.options.get("batch", sweep.BASE[ablation.stage]["batch"])
        assert plan.steps(ablation) * batch == STEPS[ablation.stage] * sweep.BASE[ablation.stage]["batch"]


def test_an_ablation_that_fails_is_logged_and_the_sweep_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_ablation(ablation: sweep.Ablation, _: object) -> int:
        if ablation.name == "vae-kl":
            raise FloatingPointError("the loss is nan at step 3")
        return 7

    row = dict.fromkeys(sweep.METRICS, 0.5)
    monkeypatch.setattr(sweep, "train_ablation", train_ablation)
    monkeypatch.setattr(sweep, "figures", lambda *_: {"ONNX": row})
    log = tmp_path / "ablations.csv"
    assert sweep.main(["--data", str(data), "--log", str(log), "--only", "vae-kl"]) == 0
    with open(log, newline="", encoding="utf-8") as file:
        found = {row["ablation"]: row for row in csv.DictReader(file)}
    assert found["vae-kl"]["run"] == "failed: the loss is nan at step 3"
    assert found["vae-base"]["seconds"] == "7"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        ablation.name for ablation in ABLATIONS
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("few_held_out")
def test_a_sweep_trains_measures_logs_and_continues(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sweep, "ABLATIONS", tuple(replace(ablation, preset=shrink(ablation.preset)) for ablation in ABLATIONS)
    )
    monkeypatch.setattr(sweep, "STEPS", {"vae": 1, "unet": 1, "tune": 1})
    monkeypatch.setattr(sweep, "STEPS_MEASURED", {"unet": (1,), "tune": (1,)})
    small = {"vae": {"batch": 1, "crop": 64}, "unet": {"batch": 2}, "tune": {"batch": 1, "crop": 64}}
    monkeypatch.setattr(sweep, "BASE", {stage: {**options, "precision": "fp32"} for stage, options in small.items()})
    log = tmp_path / "ablations.csv"
    command = ["--data", str(data), "--folder", str(tmp_path / "sweep"), "--log", str(log), "--limit", "1"]
    command += ["--device", "cpu", "--only"]
    with patch.dict(PRESETS):
        assert sweep.main([*command, "vae-8ch"]) == 0
        first = log.read_text(encoding="utf-8")
        assert "unet" not in first, "only the bases that an ablation needs"
        assert sweep.main([*command, "unet-plain", "tune-same"]) == 0
    assert log.read_text(encoding="utf-8").startswith(first), "what is logged is not run again"
    with open(log, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = ["vae-base", "vae-8ch", "unet-base", "tune-base", "tune-base", "tune-base", "unet-plain"]
    expected += ["tune-same", "tune-same", "tune-same"]
    assert sorted(row["ablation"] for row in rows) == sorted(expected)
    assert all(float(row["lpips_alex"]) > 0 and float(row["seconds"]) >= 0 for row in rows)
    assert {row["run"] for row in rows if row["stage"] == "tune"} == {
        "PyTorch: DDIM, 1 step, from pure noise",
        "PyTorch: DDIM, 1 step, from pure noise, mean of 16",
        "PyTorch: DDIM, 1 step, from pure noise, not projected",
    }


def test_no_steps_is_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--data", str(data), "--log", str(tmp_path / "log.csv"), "--scale", "0"]) == 1
    assert capsys.readouterr().err == "error: --scale must be above 0, got 0\n"


def test_missing_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--data", str(tmp_path), "--log", str(tmp_path / "log.csv")]) == 1
    assert capsys.readouterr().err.startswith(f"error: '{tmp_path}' has no HR_256/ and LR_64/")
