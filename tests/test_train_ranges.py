"""Ranges for INT8: what the convolutions see, and only of the weights that they were recorded from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import ROOT
from pipeline.method.sampler import image_noise
from pipeline.method.upscale import default_rows
from pipeline.networks import eager
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.fused import Fused
from pipeline.networks.unet import UNet
from pipeline.networks.weights import RANGES_FILE, load_ranges
from pipeline.presets import BEST
from train import ranges
from train.data import PairDataset, list_pairs
from train.degrade import DEGRADATION_ROWS
from train.ranges import EXACT, quantizable, record

pytestmark = pytest.mark.slow

WEIGHTS = ROOT / "weights" / "best"


@pytest.fixture(scope="module")
def system() -> eager.Eager:
    return eager.load(WEIGHTS, BEST)


def whole_of(system: eager.Eager) -> Fused:
    vae = system.decoder.vae
    assert isinstance(vae, DetailVAE)
    return Fused(system.unet, vae)


def test_ranges_hold_what_each_channel_sees(system: eager.Eager, data: Path) -> None:
    pairs = PairDataset(list_pairs(data)[:2], BEST.data)
    found = record(pairs, system)
    whole = whole_of(system)
    assert found.keys() == quantizable(whole).keys()
    seen: list[torch.Tensor] = []
    name = "vae.blocks.3.conv1"
    hook = whole.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        for i in range(2):
            made = PairDataset(pairs.paths, pairs.data, degradation=list(DEGRADATION_ROWS.values())[i])
            arrays = made.unit_images(i)[0][None], image_noise([i], (4, 32, 32))(), default_rows(BEST.diffusion)[None]
            whole(*map(torch.from_numpy, arrays))
    hook.remove()
    both = torch.cat(seen)
    np.testing.assert_allclose(found[name], torch.stack([both.amin((0, 2, 3)), both.amax((0, 2, 3))]), rtol=1e-4)


def test_what_comes_in_and_what_is_seen_stays_exact(system: eager.Eager) -> None:
    names = quantizable(whole_of(system))
    assert not [name for name in names if name in EXACT]
    assert len(names) == 42


def test_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = shutil.copytree(WEIGHTS, tmp_path / "weights")
    (weights / RANGES_FILE).unlink()
    arguments = ["--data", str(data), "--weights", str(weights), "--limit", "1"]
    assert ranges.main(arguments) == 0
    assert "1 images of 1 patients, split train: 42 convolutions; wrote" in capsys.readouterr().out
    assert ranges.main(["--data", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_missing_damaged_and_foreign_ranges_are_one_line(system: eager.Eager, tmp_path: Path) -> None:
    networks = {"vae": system.decoder.vae, "unet": system.unet}
    with pytest.raises(ValueError, match="is missing: record them with  python -m train.ranges"):
        load_ranges(tmp_path, networks)
    (tmp_path / RANGES_FILE).write_bytes((WEIGHTS / RANGES_FILE).read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot read"):
        load_ranges(tmp_path, networks)
    shutil.copy(WEIGHTS / RANGES_FILE, tmp_path)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="was recorded from other weights than those beside it"):
        load_ranges(tmp_path, {**networks, "unet": UNet(BEST.unet)})
