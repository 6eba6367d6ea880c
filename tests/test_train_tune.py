"""The tuning of what a few steps make: what learns, and what stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import ROOT
from train import tune

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_held_out")]

WEIGHTS = ROOT / "weights" / "best"


def test_the_restorer_can_learn_alone(data: Path, tmp_path: Path) -> None:
    options = ("--run-dir", str(tmp_path / "run"), "--steps", "2", "--batch", "2", "--crop", "64", "--warmup", "0")
    folders = ("--data", str(data), "--weights", str(WEIGHTS), "--out", str(tmp_path / "out"))
    losses = ("--vgg", "0", "--diversity", "0", "--averaged", "0.4", "--only-restorer")
    assert tune.main([*folders, *options, *losses, "--device", "cpu", "--precision", "fp32"]) == 0
    before, after = (load_file(folder / "vae.safetensors") for folder in (WEIGHTS, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("restorer.") and not name.startswith("restorer.head.") for name in changed)
    unets = (load_file(folder / "unet.safetensors") for folder in (WEIGHTS, tmp_path / "out"))
    assert all(torch.equal(*pair) for pair in zip(*(unet.values() for unet in unets), strict=True))
