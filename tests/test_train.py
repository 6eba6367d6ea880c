"""The training loops on tiny data: they learn, resume where they stopped, and write what export reads."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.spec import PAPER
from pipeline.vae import load_vae
from pipeline.weights import load_unet
from train import checkpoint, unet, vae
from train.schedule import learning_rate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty smooth images of ten patients."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (folder / "hr256").mkdir()
    for patient in range(10):
        for follow_up in range(2):
            small = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            image = cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / "hr256" / f"{patient:08}_{follow_up:03}.png"), image)
    return folder


@pytest.fixture(scope="module")
def weights(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    config = vae.VAETraining(data=data, out=folder, run=folder / "run", steps=2, batch=1, bf16=False)
    vae.train(config)
    return folder


def test_vae_training_writes_a_loadable_autoencoder_with_its_scale(weights: Path) -> None:
    loaded = load_vae(weights / "vae", PAPER.vae)
    metadata = json.loads((weights / "vae.json").read_text())
    assert loaded.config.scaling_factor == pytest.approx(1 / metadata["latent_std"])
    assert loaded.config.shift_factor == pytest.approx(metadata["latent_mean"])
    assert metadata["config"]["steps"] == 2


def unet_config(data: Path, weights: Path, tmp_path: Path, steps: int) -> unet.UNetTraining:
    return unet.UNetTraining(
        data=data, weights=weights, run=tmp_path / "run", steps=steps, batch=4, passes=1, bf16=False, ema=0.5
    )


def test_unet_training_learns_and_writes_weights(data: Path, weights: Path, tmp_path: Path) -> None:
    unet.train(unet_config(data, weights, tmp_path, 40))
    load_unet(weights, PAPER)
    metadata = json.loads((weights / "unet.json").read_text())
    assert metadata["validation_loss"] < 0.8, "a network that predicts nothing has 1"


def test_an_interrupted_training_continues_to_the_same_weights(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = unet_config(data, weights, tmp_path, 6)
    unet.train(straight)
    expected = load_unet(weights, PAPER).state_dict()

    class Killed(BaseException):
        pass

    broken = replace(straight, run=tmp_path / "broken")
    save, saved = checkpoint.save, []

    def save_then_die(path: Path, key: str, state: dict[str, object]) -> None:
        save(path, key, state)
        saved.append(path)
        if path.name == "checkpoint.pt" and len(saved) < 4:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save_then_die)
    monkeypatch.setattr(unet, "CHECKPOINT_STEPS", 3)
    with pytest.raises(Killed):
        unet.train(broken)
    monkeypatch.setattr(checkpoint, "save", save)
    unet.train(broken)
    for name, value in load_unet(weights, PAPER).state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 1000, 1.0) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / 50)
    assert max(rates) == pytest.approx(1, abs=1e-3)
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    assert all(a >= b for a, b in itertools.pairwise(rates[50:]))


@pytest.mark.parametrize("main", [vae.main, unet.main])
def test_missing_data_is_one_line(
    main: object, tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: Path
) -> None:
    where = ["--weights", str(weights)] if main is unet.main else []
    assert main(["--data", str(tmp_path), "--run", str(tmp_path / "r"), *where]) == 1  # type: ignore[operator]
    assert capsys.readouterr().err == f"error: no PNG files in '{tmp_path / 'hr256'}'\n"
