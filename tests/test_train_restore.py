"""The restorer's training: it changes the restorer alone, of networks that stay a pair."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import ROOT
from pipeline.networks import eager
from pipeline.presets import BEST
from train import restore

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_held_out")]

WEIGHTS = ROOT / "weights" / "best"


def arguments(data: Path, folder: Path, steps: int) -> list[str]:
    folders = ("--data", str(data), "--weights", str(WEIGHTS), "--out", str(folder / "out"))
    return [
        *folders,
        *("--run-dir", str(folder / "run"), "--steps", str(steps), "--batch", "2", "--crop", "64", "--warmup", "0"),
        *("--device", "cpu", "--precision", "fp32", "--resume"),
    ]


def test_only_the_restorer_learns_and_the_networks_stay_a_pair(data: Path, tmp_path: Path) -> None:
    assert restore.main(arguments(data, tmp_path, 2)) == 0
    before, after = (load_file(folder / "vae.safetensors") for folder in (WEIGHTS, tmp_path / "out"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"restorer"}
    assert (WEIGHTS / "unet.safetensors").read_bytes() == (tmp_path / "out" / "unet.safetensors").read_bytes()
    eager.load(tmp_path / "out", BEST)
    assert list((tmp_path / "run" / "samples").glob("*.png"))


def test_what_tells_the_history_can_learn_alone(data: Path, tmp_path: Path) -> None:
    assert restore.main([*arguments(data, tmp_path, 2), "--only-history"]) == 0
    before, after = (load_file(folder / "vae.safetensors") for folder in (WEIGHTS, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("restorer.head.")}


def test_other_presets_have_none(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore.main([*arguments(data, tmp_path, 1), "--preset", "paper"]) == 1
    assert "must be one whose networks see the LR image itself" in capsys.readouterr().err
