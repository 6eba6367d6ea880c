"""The training of what tells turned and inverted images: it changes that alone, in place, and the metadata say so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import ROOT
from pipeline.networks import eager
from pipeline.presets import BEST
from pipeline.spec import PRESENTATIONS
from train import presentation
from train.scans import SIZES, Scans

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_held_out")]

WEIGHTS = ROOT / "weights" / "best"


def arguments(data: Path, folder: Path, steps: int) -> list[str]:
    return [
        *("--data", str(data), "--weights", str(folder / "weights"), "--run-dir", str(folder / "run")),
        *("--steps", str(steps), "--batch", "4", "--warmup", "0", "--device", "cpu", "--precision", "fp32"),
    ]


def test_it_alone_learns_and_its_making_is_told_beside_that_of_the_others(data: Path, tmp_path: Path) -> None:
    weights = Path(shutil.copytree(WEIGHTS, tmp_path / "weights"))
    assert presentation.main(arguments(data, tmp_path, 2)) == 0
    before, after = (load_file(folder / "vae.safetensors") for folder in (WEIGHTS, weights))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"presentation"}
    eager.load(weights, BEST)
    old, new = (json.loads((folder / "vae.json").read_text()) for folder in (WEIGHTS, weights))
    assert new["presentation"]["config"]["steps"] == 2
    assert {**old, "presentation": None} == {**new, "presentation": None}
    assert list((tmp_path / "run" / "samples").glob("*.png"))


def test_it_does_not_start_from_what_stands_there(data: Path, tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    assert presentation.main(arguments(data, tmp_path, 1)) == 0
    once = (tmp_path / "weights" / "vae.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run")
    assert presentation.main(arguments(data, tmp_path, 1)) == 0
    assert (tmp_path / "weights" / "vae.safetensors").read_bytes() == once


def test_every_presentation_is_drawn(data: Path) -> None:
    scans = Scans.read(data, SIZES, {path.stem.split("_")[0] for path in (data / "HR_256").glob("*.png")}, {})
    lr, labels = presentation.draw_images(scans, [(0, i) for i in range(128)])
    assert lr.shape == (128, 1, 64, 64)
    assert set(labels.tolist()) == set(range(len(PRESENTATIONS)))


def test_a_part_of_a_radiograph_is_a_square_of_one_size(rng: np.random.Generator) -> None:
    for _ in range(20):
        part = presentation.part_of(rng.integers(0, 256, (512, 512)).astype(np.uint8), rng)
        assert part.shape == (presentation.SIDE, presentation.SIDE)
        assert part.dtype == np.uint8


def test_other_presets_have_none(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert presentation.main([*arguments(data, tmp_path, 1), "--preset", "paper"]) == 1
    assert "must be one whose networks see the LR image itself" in capsys.readouterr().err
