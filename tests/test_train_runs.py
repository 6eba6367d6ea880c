"""The recipes' slices: each goes on where the one before stopped, on this machine or, by parts, on another."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pipeline import ROOT
from pipeline.networks.unet import UNet
from pipeline.networks.vae import make_vae
from pipeline.networks.weights import digest, save_unet, save_vae
from pipeline.presets import BEST
from tests.recipes import run_recipe

SLICE = ROOT / "train" / "runs" / "slice.sh"


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_held_out")]


def run(*arguments: str | Path, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    return run_recipe(SLICE, *arguments, **{"DEVICE": "cpu", **variables})


def make(folder: Path) -> None:
    """New networks."""
    vae, unet = make_vae(BEST.vae), UNet(BEST.unet)
    folder.mkdir(parents=True)
    save_vae(vae, folder, {})
    save_unet(unet, folder, {"vae": digest(vae)})


def test_slices_go_on_by_the_parts_of_the_checkpoint(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "out-restoring")
    folders = {"RUNS": tmp_path / "runs", "PARTS_DIR": tmp_path / "parts"}
    first = run("0.0001", data, tmp_path / "out", **folders, TUNE_STEPS="3")
    said = capsys.readouterr()
    assert first.returncode == 0, said.err[-3000:] + first.stderr[-3000:]
    assert "== tune\n" in first.stdout
    assert "stopped at step 1 of 3 after 0.0001 minutes; run the same command with --resume to continue" in said.out
    parts = list((tmp_path / "parts" / "tune").glob("part-*"))
    assert len(parts) > 1
    assert all(part.stat().st_size < 16_000_000 for part in parts)
    shutil.rmtree(tmp_path / "runs")
    second = run("0.0001", data, tmp_path / "out", **folders, TUNE_STEPS="3")
    assert second.returncode == 0, capsys.readouterr().err[-3000:] + second.stderr[-3000:]
    assert torch.load(tmp_path / "runs" / "tune" / "checkpoint.pt", weights_only=True)["step"] == 2
    assert not (tmp_path / "out-tuned").exists()


def test_what_is_finished_is_not_trained_again(data: Path, tmp_path: Path) -> None:
    for name in ("out-tuned", "out"):
        make(tmp_path / name)
    shutil.copy(tmp_path / "out-tuned" / "unet.safetensors", tmp_path / "out")
    done = run("1", data, tmp_path / "out", RUNS=tmp_path / "runs")
    assert done.returncode == 0
    assert done.stdout.startswith("all stages are finished; next: STAGES='presentation ranges calibrate export'")


@pytest.mark.parametrize("minutes", ["", "0", "ten", "-1"])
def test_minutes_are_a_number_above_zero(minutes: str) -> None:
    result = run(minutes)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: train/runs/slice.sh MINUTES")
