"""Weights on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.spec import PAPER
from pipeline.unet import UNet
from pipeline.weights import load_unet, save_unet


def test_unet_round_trip(tmp_path: Path) -> None:
    unet = UNet(PAPER.unet)
    save_unet(unet, tmp_path, {"steps": 3})
    loaded = load_unet(tmp_path, PAPER)
    assert not loaded.training
    for (name, a), b in zip(unet.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert json.loads((tmp_path / "unet.json").read_text()) == {"steps": 3}


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read '.*unet\.safetensors'"):
        load_unet(tmp_path, PAPER)


def test_damaged_weights(tmp_path: Path) -> None:
    (tmp_path / "unet.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=r"cannot read '.*unet\.safetensors'"):
        load_unet(tmp_path, PAPER)


def test_weights_of_another_network(tmp_path: Path) -> None:
    save_unet(UNet(replace(PAPER.unet, base=16)), tmp_path, {})
    with pytest.raises(ValueError, match="does not hold the U-Net of preset 'paper'"):
        load_unet(tmp_path, PAPER)


@pytest.mark.parametrize("name", ["vae", "unet"])
def test_shipped_metadata_tells_where_the_weights_come_from(name: str) -> None:
    metadata = json.loads((Path(__file__).parents[1] / "weights" / "paper" / f"{name}.json").read_text())
    assert {"preset", "data", "config", "metrics", "date", "parameters"} <= metadata.keys()
    assert {"steps", "seed"} <= metadata["config"].keys()
