"""The autoencoder: ours, and any pretrained one through ``from_pretrained``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from pipeline.spec import PAPER
from pipeline.vae import Decoder, Encoder, load_vae, make_vae, set_latent_scale

SPEC = PAPER.vae


def tiny_vae(levels: int = 4, **options: object) -> AutoencoderKL:
    """A randomly initialised autoencoder with Stable Diffusion's layout, attention included."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        **options,
    )


def test_ours_is_small_and_has_the_papers_latents() -> None:
    vae = make_vae(SPEC)
    assert 1_000_000 <= sum(p.numel() for p in vae.parameters()) <= 5_000_000
    latent = Encoder(vae)(torch.zeros(1, 3, 64, 96))
    assert latent.shape == (1, 4, 8, 12)
    assert Decoder(vae)(latent).shape == (1, 3, 64, 96)


def test_loads_a_save_pretrained_folder(tmp_path: Path) -> None:
    saved = tiny_vae(scaling_factor=0.18215)
    saved.save_pretrained(tmp_path)
    loaded = load_vae(tmp_path, SPEC)
    assert not loaded.training
    x = torch.randn(1, 3, 32, 32)
    raw = saved.eval().encode(x).latent_dist.mean
    torch.testing.assert_close(Encoder(loaded)(x), raw * 0.18215)
    torch.testing.assert_close(
        Decoder(loaded)(raw * 0.18215), saved.decode(raw).sample.clamp(-1, 1), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_latent_scale_is_saved_and_applied_inside(tmp_path: Path) -> None:
    vae = make_vae(SPEC).eval()
    x = torch.randn(4, 3, 64, 64)
    raw = vae.encode(x).latent_dist.mean
    set_latent_scale(vae, float(raw.mean()), float(raw.std()))
    vae.save_pretrained(tmp_path)
    loaded = load_vae(tmp_path, SPEC)
    latent = Encoder(loaded)(x)
    assert abs(latent.mean()) < 1e-4
    assert abs(latent.std() - 1) < 1e-4
    torch.testing.assert_close(Decoder(loaded)(latent), vae.decode(raw).sample.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_decoded_images_are_in_range() -> None:
    image = Decoder(make_vae(SPEC))(100 * torch.randn(1, 4, 8, 8))
    assert image.min() >= -1
    assert image.max() <= 1


@pytest.mark.parametrize("source", ["nowhere", "no/such/hub/name"])
def test_missing_autoencoder(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=f"no AutoencoderKL at '{source}'") as caught:
        load_vae(source, SPEC)
    assert "\n" not in str(caught.value)


def test_a_path_is_never_looked_up_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no AutoencoderKL at '.*nowhere': it is not a folder"):
        load_vae(tmp_path / "nowhere", SPEC)


def test_autoencoder_with_other_latents(tmp_path: Path) -> None:
    tiny_vae(levels=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(3, 4, 4\), needed is \(3, 4, 8\)"):
        load_vae(tmp_path, SPEC)
