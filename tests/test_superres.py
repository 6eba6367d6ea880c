"""The method around any networks: padding, sizes, batches, seeds, options."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.images import upsample
from pipeline.spec import PAPER
from pipeline.superres import Networks, network_input, network_output, upscale
from tests.conftest import Array


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97), (128, 96), (16, 16), (2, 2), (3, 50)])
def test_any_size_is_padded_and_cropped_back(fake_networks: Networks, height: int, width: int) -> None:
    seen: list[tuple[int, ...]] = []

    def encode(image: Array) -> Array:
        seen.append(image.shape)
        return fake_networks.encode(image)

    image = np.random.default_rng(0).random((height, width), dtype=np.float32)
    (result,) = upscale([image], [0], replace(fake_networks, encode=encode), PAPER, steps=3)
    assert result.shape == (4 * height, 4 * width)
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() <= 1
    assert seen[0][:2] == (1, 3)
    assert all(side % 64 == 0 for side in seen[0][2:])


def test_the_encoder_sees_the_bicubic_image(rng: np.random.Generator) -> None:
    images = [rng.random((64, 64), dtype=np.float32) for _ in range(2)]
    x = network_input(images, PAPER)
    assert x.shape == (2, 3, 256, 256)
    np.testing.assert_allclose((x[1, 2] + 1) / 2, upsample(images[1]), atol=1e-6)
    for found, image in zip(network_output(x, images), images, strict=True):
        np.testing.assert_allclose(found, np.clip(upsample(image), 0, 1), atol=1e-6)


def test_the_denoiser_sees_noisy_latent_lr_latent_and_time(fake_networks: Networks, rng: np.random.Generator) -> None:
    calls: list[tuple[Array, Array]] = []

    def denoise(x: Array, t: Array) -> Array:
        calls.append((x.copy(), t.copy()))
        return fake_networks.denoise(x, t)

    images = [rng.random((16, 16), dtype=np.float32) for _ in range(2)]
    upscale(images, [0, 1], replace(fake_networks, denoise=denoise), PAPER, sampler="ddpm")
    z_lr = fake_networks.encode(network_input(images, PAPER))
    assert [int(t[0, 0]) for _, t in calls] == list(range(299, -1, -1))
    for x, t in calls:
        assert t.shape == (2, 1)
        np.testing.assert_array_equal(x[:, 4:], z_lr)
    assert not np.array_equal(calls[0][0][:, :4], calls[1][0][:, :4])


def test_an_image_is_the_same_alone_and_in_any_batch(fake_networks: Networks, rng: np.random.Generator) -> None:
    images = [rng.random((20, 30), dtype=np.float32) for _ in range(4)]
    seeds = [5, 6, 5, 7]
    together = upscale(images, seeds, fake_networks, PAPER, steps=10)
    for i in range(4):
        (alone,) = upscale([images[i]], [seeds[i]], fake_networks, PAPER, steps=10)
        np.testing.assert_array_equal(alone, together[i])


def test_seed_and_options_change_the_result(fake_networks: Networks, rng: np.random.Generator) -> None:
    image = rng.random((16, 16), dtype=np.float32)

    def run(seed: int, **options: object) -> Array:
        return upscale([image], [seed], fake_networks, PAPER, **options)[0]  # type: ignore[arg-type]

    base = run(0, steps=10, sampler="ddpm")
    assert not np.array_equal(run(0, steps=10, sampler="ddpm", start="noise"), base)
    np.testing.assert_array_equal(run(0, steps=10, sampler="ddpm"), base)
    for other in (run(1, steps=10, sampler="ddpm"), run(0, steps=11, sampler="ddpm"), run(0, steps=10, sampler="ddim")):
        assert not np.array_equal(other, base)


def test_the_default_is_the_presets(fake_networks: Networks, rng: np.random.Generator) -> None:
    image = rng.random((16, 16), dtype=np.float32)
    (default,) = upscale([image], [0], fake_networks, PAPER)
    (explicit,) = upscale([image], [0], fake_networks, PAPER, steps=10, sampler="ddim", start="lr")
    np.testing.assert_array_equal(default, explicit)


def test_ddpm_takes_all_steps_unless_told(fake_networks: Networks, rng: np.random.Generator) -> None:
    image = rng.random((16, 16), dtype=np.float32)
    (default,) = upscale([image], [0], fake_networks, PAPER, sampler="ddpm")
    (explicit,) = upscale([image], [0], fake_networks, PAPER, steps=300, sampler="ddpm", start="lr")
    np.testing.assert_array_equal(default, explicit)
