"""The cache of latents: encoded once, as the pipeline would, and refused for anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.method.images import to_network
from pipeline.method.upscale import network_lr, upsample_all
from pipeline.networks.vae import Encoder, make_vae
from pipeline.presets import BEST, PAPER
from train.data import PairDataset, list_pairs
from train.latents import cached_latents

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(make_vae(PAPER.vae))


def test_latents_are_encoded_once(data: Path, tmp_path: Path, encoder: Encoder) -> None:
    pairs = PairDataset(list_pairs(data)[:3], PAPER.data)
    cpu, path = torch.device("cpu"), tmp_path / "latents.pt"
    first = cached_latents(path, {"vae": "a"}, encoder, {"train": pairs}, PAPER, cpu)["train"]
    assert (first.shape, first.dtype) == ((3, 8, 32, 32), torch.float16)
    lr, hr = pairs.unit_images(1)
    bicubic = upsample_all(network_lr([lr], PAPER))
    for latent, image in ((first[1, :4], to_network(hr, 3)[None]), (first[1, 4:], bicubic)):
        expected = encoder(torch.from_numpy(image))[0].detach()
        torch.testing.assert_close(latent.float(), expected, atol=1e-2, rtol=1e-2)
    written = path.stat().st_mtime_ns
    again = cached_latents(path, {"vae": "a"}, encoder, {"train": pairs}, PAPER, cpu)["train"]
    assert torch.equal(first, again)
    assert path.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"belongs to another run \(vae a, not b\)"):
        cached_latents(path, {"vae": "b"}, encoder, {"train": pairs}, PAPER, cpu)


def test_a_preset_that_sees_the_lr_image_keeps_it_beside_the_latent(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pairs = PairDataset(list_pairs(data)[:2], BEST.data)
    encoder = Encoder(make_vae(BEST.vae))
    path, cpu = tmp_path / "latents.pt", torch.device("cpu")
    latents = cached_latents(path, {}, encoder, {"train": pairs}, BEST, cpu)["train"]
    lr, hr = (image[None] for image in pairs[1])
    expected = torch.cat([encoder(hr, lr).detach(), torch.pixel_unshuffle(lr, 2)], dim=1)
    torch.testing.assert_close(latents[1:].float(), expected, atol=1e-2, rtol=1e-2)
