"""The autoencoders: ``AutoencoderKL``, ours or any pretrained one; and the one that sees the LR image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from pipeline.method.images import upsample
from pipeline.networks import detail_vae as networks
from pipeline.networks.detail_vae import DetailVAE, upsample_by_sums
from pipeline.networks.vae import Decoder, Encoder, load_vae, make_vae, set_latent_scale, vae_path
from pipeline.networks.weights import save_vae
from pipeline.presets import BEST, PAPER

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
    assert Decoder(vae)(latent)[0].shape == (1, 3, 64, 96)


def test_loads_a_save_pretrained_folder(tmp_path: Path) -> None:
    saved = tiny_vae(scaling_factor=0.18215)
    saved.save_pretrained(tmp_path)
    loaded = load_vae(tmp_path, SPEC)
    assert not loaded.training
    x = torch.randn(1, 3, 32, 32)
    raw = saved.eval().encode(x).latent_dist.mean
    torch.testing.assert_close(Encoder(loaded)(x), raw * 0.18215)
    torch.testing.assert_close(
        Decoder(loaded)(raw * 0.18215)[0], saved.decode(raw).sample.clamp(-1, 1), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_latent_scale_is_saved_and_applied_inside(tmp_path: Path) -> None:
    vae = make_vae(SPEC).eval()
    assert isinstance(vae, AutoencoderKL)
    x = torch.randn(4, 3, 64, 64)
    raw = vae.encode(x).latent_dist.mean
    set_latent_scale(vae, raw)
    vae.save_pretrained(tmp_path)
    loaded = load_vae(tmp_path, SPEC)
    latent = Encoder(loaded)(x)
    assert abs(latent.mean()) < 1e-4
    assert abs(latent.std() - 1) < 1e-4
    torch.testing.assert_close(Decoder(loaded)(latent)[0], vae.decode(raw).sample.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_decoded_images_are_in_range() -> None:
    (image,) = Decoder(make_vae(SPEC))(100 * torch.randn(1, 4, 8, 8))
    assert image.min() >= -1
    assert image.max() <= 1


@pytest.mark.parametrize("source", ["nowhere", "no/such/hub/name"])
def test_missing_autoencoder(source: str) -> None:
    with pytest.raises(ValueError, match=f"no AutoencoderKL at '{source}'") as caught:
        load_vae(source, SPEC)
    assert "\n" not in str(caught.value)


def test_a_path_is_never_looked_up_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no AutoencoderKL at '.*nowhere': it is not a folder"):
        load_vae(tmp_path / "nowhere", SPEC)


def test_autoencoder_with_other_latents(tmp_path: Path) -> None:
    tiny_vae(levels=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(3, 4, 8\), got \(3, 4, 4\)"):
        load_vae(tmp_path, SPEC)


def detail_vae() -> DetailVAE:
    torch.manual_seed(0)
    vae = make_vae(BEST.vae)
    assert isinstance(vae, DetailVAE)
    return vae.eval()


@torch.no_grad()
def test_a_new_detail_decoder_is_nearly_bicubic() -> None:
    lr = torch.rand(1, 1, 16, 24) * 2 - 1
    image, doubt = Decoder(detail_vae())(torch.randn(1, 4, 8, 12), lr)
    assert doubt.shape == (1, 64, 96)
    assert doubt.min() > 0
    assert image.shape == (1, 1, 64, 96)
    torch.testing.assert_close(image[0, 0], torch.from_numpy(upsample(lr[0, 0].numpy())), atol=0.2, rtol=0)


@torch.no_grad()
def test_a_detail_latent_is_scaled_channel_by_channel(tmp_path: Path) -> None:
    vae, image, lr = detail_vae(), torch.randn(8, 1, 64, 64), torch.randn(8, 1, 16, 16)
    raw = vae.posterior(image, lr)[0]
    assert raw.shape == (8, 4, 8, 8)
    set_latent_scale(vae, raw)
    save_vae(vae, tmp_path, {})
    loaded = load_vae(vae_path(tmp_path, BEST.vae), BEST.vae)
    assert not loaded.training
    latent = Encoder(loaded)(image, lr)
    torch.testing.assert_close(latent.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(Decoder(loaded)(latent, lr)[0], vae.decode(raw, lr)[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_detail_vae_decodes_a_tile_as_it_decodes_the_whole() -> None:
    vae, latent, lr = detail_vae(), torch.randn(1, 4, 48, 48), torch.randn(1, 1, 96, 96)
    whole = vae.decode(latent, lr)[0][..., 128:256, 128:256]
    tile = vae.decode(latent[..., 2:46, 2:46], lr[..., 4:92, 4:92])[0][..., 112:240, 112:240]
    torch.testing.assert_close(tile, whole, atol=1e-4, rtol=0)


def test_a_file_that_holds_another_autoencoder(tmp_path: Path) -> None:
    save_vae(make_vae(replace(BEST.vae, width=32)), tmp_path, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"does not hold an autoencoder of DetailVAESpec\("):
        load_vae(vae_path(tmp_path, BEST.vae), BEST.vae)
    with pytest.raises(ValueError, match="cannot read 'nowhere'"):
        load_vae("nowhere", BEST.vae)


@pytest.mark.parametrize("shape", [(1, 1, 5, 9), (2, 3, 16, 8)])
def test_upsampling_is_exported_as_products_and_sums_that_give_the_same(shape: tuple[int, ...]) -> None:
    lr = torch.rand(shape)
    torch.testing.assert_close(upsample_by_sums(lr), networks.upsample(lr), rtol=0, atol=1e-6)
