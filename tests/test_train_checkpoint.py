"""Checkpoints: whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from train import checkpoint


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.pt"
    assert checkpoint.load(path, "key") is None
    checkpoint.save(path, "key", {"step": 3, "w": torch.arange(4)})
    state = checkpoint.load(path, "key")
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["w"], torch.arange(4))


def test_a_failed_save_keeps_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, "key", {"step": 1})

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, "key", {"step": 2})
    assert checkpoint.load(path, "key") == {"step": 1, "key": "key"}


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", "seed=1", {})
    with pytest.raises(ValueError, match=r"is of another run \(seed=1, not seed=2\): remove it or give another --run"):
        checkpoint.load(tmp_path / "c.pt", "seed=2")


def test_digest_tells_weights_apart() -> None:
    module = nn.Linear(2, 2)
    before = checkpoint.state_digest(module)
    assert checkpoint.state_digest(module) == before
    with torch.no_grad():
        module.bias[0] += 1
    assert checkpoint.state_digest(module) != before


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
