"""Checkpoints: whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from train import checkpoint


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.pt"
    assert checkpoint.load(path) is None
    checkpoint.save(path, {"step": 3, "w": torch.arange(4)})
    state = checkpoint.load(path)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["w"], torch.arange(4))


def test_a_failed_save_keeps_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 1})

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}


def test_ema_follows_the_weights_slowly() -> None:
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(0.0)
    ema = checkpoint.EMA(module, decay=0.9)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema.update(module, step=1000)
    assert ema.module.weight.item() == pytest.approx(0.1)
    assert not ema.module.weight.requires_grad
    fresh = checkpoint.EMA(nn.Linear(1, 1), decay=0.9)
    fresh.update(module, step=0)
    assert fresh.module.weight.item() == pytest.approx(0.9, abs=0.2), "the first steps count more"
