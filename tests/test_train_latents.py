"""The cache of latents: encoded once, as the pipeline would, and refused for anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.spec import PAPER
from pipeline.superres import network_input
from pipeline.vae import Encoder, make_vae
from train.data import PairDataset, list_pairs
from train.latents import cached_latents, encoder_input


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(make_vae(PAPER.vae))


def test_the_encoder_sees_lr_as_the_pipeline_shows_it(data: Path) -> None:
    pairs = PairDataset(list_pairs(data)[:2], PAPER.data)
    lr = torch.stack([pairs[i][0] for i in range(2)])
    expected = network_input([pairs.unit_images(i)[0] for i in range(2)], PAPER)
    torch.testing.assert_close(encoder_input(lr), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_latents_are_encoded_once(data: Path, tmp_path: Path, encoder: Encoder) -> None:
    pairs = PairDataset(list_pairs(data)[:3], PAPER.data)
    cpu, path = torch.device("cpu"), tmp_path / "latents.pt"
    first = cached_latents(path, {"vae": "a"}, encoder, {"train": pairs}, cpu)["train"]
    assert (first.shape, first.dtype) == ((3, 2, 4, 32, 32), torch.float16)
    hr = pairs[1][1][None]
    torch.testing.assert_close(first[1, 0].float(), encoder(hr)[0].detach(), atol=1e-2, rtol=1e-2)
    written = path.stat().st_mtime_ns
    again = cached_latents(path, {"vae": "a"}, encoder, {"train": pairs}, cpu)["train"]
    assert torch.equal(first, again)
    assert path.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"is of another run \(vae a, not b\)"):
        cached_latents(path, {"vae": "b"}, encoder, {"train": pairs}, cpu)
