"""Checkpoints: whole or not there."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from train import checkpoint

KEY = {"seed": 0}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.pt"
    assert checkpoint.load(path, KEY) is None
    checkpoint.save(path, KEY, {"step": 3, "w": torch.arange(4)})
    state = checkpoint.load(path, KEY)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["w"], torch.arange(4))


def test_a_file_that_cannot_grow_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, KEY, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write '.*checkpoint\.pt': .*; the one before is kept"):
            checkpoint.save(path, KEY, {"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [path]
    assert checkpoint.load(path, KEY) == {"step": 1, "key": KEY}


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pt", {"seed": 1, "batch": 4}, {})
    with pytest.raises(ValueError, match=r"is of another run \(seed 1, not 2\): give another --run-dir, or remove it"):
        checkpoint.load(tmp_path / "c.pt", {"seed": 2, "batch": 4})


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"'.*c\.pt' is no checkpoint: remove it or give another --run-dir"):
        checkpoint.load(tmp_path / "c.pt", KEY)


def test_digest_tells_sets_of_files_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        path.write_bytes(b"1")
    before = checkpoint.files_digest(paths)
    assert checkpoint.files_digest(paths) == before
    assert checkpoint.files_digest(paths[:1]) != before
    paths[1].write_bytes(b"12")
    assert checkpoint.files_digest(paths) != before


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
