"""Weights on disk."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import ROOT
from pipeline.hashes import file_hash
from pipeline.networks.unet import UNet
from pipeline.networks.vae import make_vae, set_latent_scale
from pipeline.networks.weights import digest, load_unet, save_unet, save_vae
from pipeline.presets import BEST, PAPER, PRESETS, Preset


def test_unet_round_trip(tmp_path: Path) -> None:
    unet = UNet(PAPER.unet)
    save_unet(unet, tmp_path, {"steps": 3})
    loaded = load_unet(tmp_path, PAPER)
    assert not loaded.training
    for (name, a), b in zip(unet.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert json.loads((tmp_path / "unet.json").read_text()) == {
        "steps": 3,
        "sha256": file_hash(tmp_path / "unet.safetensors"),
    }


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


def test_a_unet_other_than_its_metadata_describes(tmp_path: Path) -> None:
    save_unet(UNet(PAPER.unet), tmp_path, {})
    about = (tmp_path / "unet.json").read_text()
    save_unet(UNet(PAPER.unet), tmp_path, {})
    (tmp_path / "unet.json").write_text(about)
    with pytest.raises(ValueError, match=r"unet\.safetensors' is not the U-Net of unet\.json .* SHA-256 must be"):
        load_unet(tmp_path, PAPER)


@pytest.mark.parametrize("preset", PRESETS)
def test_shipped_metadata_has_the_hash_of_the_unet(preset: str) -> None:
    folder = ROOT / "weights" / preset
    assert json.loads((folder / "unet.json").read_text())["sha256"] == file_hash(folder / "unet.safetensors")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["vae", "unet"])
def test_shipped_metadata_tells_where_the_weights_come_from(preset: str, name: str) -> None:
    metadata = json.loads((Path(__file__).parents[1] / "weights" / preset / f"{name}.json").read_text())
    assert metadata["preset"] == preset
    assert {"data", "config", "metrics", "date", "parameters"} <= metadata.keys()
    assert {"steps", "seed"} <= metadata["config"].keys()


def test_a_disk_that_fills_up_keeps_the_weights_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = UNet(PAPER.unet), UNet(PAPER.unet)
    save_unet(first, tmp_path, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write '.*unet\.safetensors'|File too large"):
            save_unet(second, tmp_path, {})
        for preset in (PAPER, BEST):
            with pytest.raises(OSError, match=r"cannot write '.*vae|File too large"):
                save_vae(make_vae(preset.vae), tmp_path, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = load_unet(tmp_path, PAPER).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in first.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unet.json", "unet.safetensors"]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)
def test_digest_tells_weights_and_scales_apart(preset: Preset) -> None:
    torch.manual_seed(0)
    vae = make_vae(preset.vae)
    before = digest(vae)
    assert digest(vae) == before
    set_latent_scale(vae, 0.5 + 2 * torch.randn(2, 4, 8, 8))
    scaled = digest(vae)
    assert scaled != before
    with torch.no_grad():
        next(vae.parameters())[0] += 1
    assert digest(vae) not in (before, scaled)
