"""Tensors in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.networks.tensors import load_tensors, save_tensors


def test_round_trip(tmp_path: Path) -> None:
    saved, loaded = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    save_tensors(saved, tmp_path / "a" / "net.safetensors")
    load_tensors(loaded, tmp_path / "a" / "net.safetensors", "a convolution")
    assert torch.equal(saved.weight, loaded.weight)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["net.safetensors"]


def test_other_missing_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(ValueError, match=r"cannot read '.*net\.safetensors'"):
        load_tensors(nn.Linear(2, 2), path, "a line")
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"cannot read '.*net\.safetensors'"):
        load_tensors(nn.Linear(2, 2), path, "a line")
    save_tensors(nn.Linear(3, 3), path)
    with pytest.raises(ValueError, match=r"net\.safetensors' does not hold a line of 2"):
        load_tensors(nn.Linear(2, 2), path, "a line of 2")
