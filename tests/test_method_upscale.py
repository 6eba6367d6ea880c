"""The method around any networks: padding, sizes, batches, seeds, options, samples, faithfulness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.method.images import downscale, fold, upsample
from pipeline.method.options import Options
from pipeline.method.reduction import LEVEL, faithful_to, read_history
from pipeline.method.sampled import Sampled
from pipeline.method.sampler import Seed
from pipeline.method.upscale import Networks, condition, generator, network_lr, scatter, upscale
from pipeline.presets import BEST, PAPER, PRESETS, Preset
from pipeline.spec import MAX_BATCH
from tests.conftest import Array


def run(networks: Networks, image: Array, seed: int = 0, preset: Preset = PAPER, **options: Any) -> Array:
    """The upscaled image; ``options`` are the generator's."""
    return upscale([image], [seed], generator(networks, preset, Options.of(preset, **options)), preset)[0].upscaled


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97), (128, 96), (16, 16), (2, 2), (3, 50)])
def test_any_size_is_padded_and_cropped_back(fake_networks: Networks, preset: Preset, height: int, width: int) -> None:
    seen: list[tuple[int, ...]] = []

    def decode(latent: Array, lr: Array) -> tuple[Array, ...]:
        seen.append(lr.shape)
        return (fake_networks.decode(latent, lr)[0][:, : preset.data.channels],)

    image = np.random.default_rng(0).random((height, width), dtype=np.float32)
    result = run(replace(fake_networks, decode=decode), image, preset=preset, steps=3)
    assert result.shape == (4 * height, 4 * width)
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() <= 1
    assert seen[0][:2] == (1, preset.data.channels)
    assert all(side % 16 == 0 for side in seen[0][2:])


def test_the_encoder_sees_the_bicubic_image(fake_networks: Networks, rng: np.random.Generator) -> None:
    images = [rng.random((64, 64), dtype=np.float32) for _ in range(2)]
    seen: list[Array] = []

    def encode(image: Array, lr: Array) -> Array:
        seen.append(image)
        return fake_networks.encode(image, lr)

    condition(network_lr(images, PAPER), PAPER, encode)
    assert seen[0].shape == (2, 3, 256, 256)
    np.testing.assert_allclose((seen[0][1, 2] + 1) / 2, upsample(images[1]), atol=1e-6)


def test_a_unet_that_sees_the_lr_image_needs_no_encoder(rng: np.random.Generator) -> None:
    lr = network_lr([rng.random((32, 48), dtype=np.float32)], BEST)

    def encode(*_: Array) -> Array:
        raise AssertionError("was called")

    np.testing.assert_array_equal(condition(lr, BEST, encode), fold(lr, 2))


def test_the_denoiser_sees_noisy_latent_lr_latent_and_time(fake_networks: Networks, rng: np.random.Generator) -> None:
    calls: list[tuple[Array, Array]] = []

    def denoise(x: Array, t: Array) -> Array:
        calls.append((x.copy(), t.copy()))
        return fake_networks.denoise(x, t)

    images = [rng.random((16, 16), dtype=np.float32) for _ in range(2)]
    generate = generator(replace(fake_networks, denoise=denoise), PAPER, Options.of(PAPER, sampler="ddpm"))
    upscale(images, [0, 1], generate, PAPER)
    z_lr = condition(network_lr(images, PAPER), PAPER, fake_networks.encode)
    assert [int(t[0, 0]) for _, t in calls] == list(range(299, -1, -1))
    for x, t in calls:
        assert t.shape == (2, 1)
        np.testing.assert_array_equal(x[:, 4:], z_lr)
    assert not np.array_equal(calls[0][0][:, :4], calls[1][0][:, :4])


def test_an_image_is_the_same_alone_and_in_any_batch(fake_networks: Networks, rng: np.random.Generator) -> None:
    images = [rng.random((20, 30), dtype=np.float32) for _ in range(4)]
    seeds, generate = [5, 6, 5, 7], generator(fake_networks, PAPER, Options.of(PAPER, steps=10))
    together = upscale(images, seeds, generate, PAPER, Options.of(PAPER, samples=3, output="mean"))
    for i in range(4):
        (alone,) = upscale([images[i]], [seeds[i]], generate, PAPER, Options.of(PAPER, samples=3, output="mean"))
        np.testing.assert_array_equal(alone.upscaled, together[i].upscaled)
        assert alone.spread is not None
        np.testing.assert_array_equal(alone.spread, together[i].spread)  # type: ignore[arg-type]
        assert alone.lr_error == together[i].lr_error


def test_seed_and_options_change_the_result(fake_networks: Networks, rng: np.random.Generator) -> None:
    image = rng.random((16, 16), dtype=np.float32)
    base = run(fake_networks, image, steps=10, sampler="ddpm")
    assert not np.array_equal(run(fake_networks, image, steps=10, sampler="ddpm", start="noise"), base)
    np.testing.assert_array_equal(run(fake_networks, image, steps=10, sampler="ddpm"), base)
    for other in (
        run(fake_networks, image, 1, steps=10, sampler="ddpm"),
        run(fake_networks, image, steps=11, sampler="ddpm"),
        run(fake_networks, image, steps=10, sampler="ddim"),
    ):
        assert not np.array_equal(other, base)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)
def test_the_default_is_the_presets(fake_networks: Networks, rng: np.random.Generator, preset: Preset) -> None:
    image, d = rng.random((16, 16), dtype=np.float32), preset.diffusion
    explicit = run(fake_networks, image, preset=preset, steps=d.ddim_steps, sampler="ddim", start=d.starts[0])
    np.testing.assert_array_equal(run(fake_networks, image, preset=preset), explicit)


def test_ddpm_takes_all_steps_unless_told(fake_networks: Networks, rng: np.random.Generator) -> None:
    image = rng.random((16, 16), dtype=np.float32)
    explicit = run(fake_networks, image, steps=300, sampler="ddpm", start="lr")
    np.testing.assert_array_equal(run(fake_networks, image, sampler="ddpm"), explicit)


def noisy(scale: float, batches: list[int] | None = None) -> Any:
    """Draws the bicubic image plus noise of its seed."""

    def generate(lr: Array, seeds: Sequence[Seed]) -> Sampled:
        if batches is not None:
            batches.append(len(lr))
        rows = [upsample(image) + scale * noise(seed, image.shape) for image, seed in zip(lr, seeds, strict=True)]
        return Sampled(np.stack(rows))

    def noise(seed: Seed, shape: tuple[int, ...]) -> Array:
        return np.random.default_rng(seed).standard_normal([4 * side for side in shape], dtype=np.float32)

    return generate


IMAGE = np.random.default_rng(0).uniform(0.3, 0.7, (32, 48)).astype(np.float32)


def telling(found: Array, doubt: float = 0.02) -> Any:
    """``noisy`` by networks that tell the history of every image, ``found``, and their doubt."""
    draw = noisy(0.05)

    def generate(lr: Array, seeds: Sequence[Seed]) -> Sampled:
        images = draw(lr, seeds).images
        return Sampled(images, np.full_like(images, doubt), np.repeat(found[None], len(lr), axis=0))

    return generate


def history(reduction: int, noise: float = 0.0) -> Array:
    """Models' answer that is sure of a reduction, and of an upright image; noise in gray levels."""
    return np.array([*np.eye(7)[reduction], noise * LEVEL, 1, *[0] * 7], np.float32)


def test_the_first_sample_is_the_one_without_others() -> None:
    (one,) = upscale([IMAGE], [3], noisy(0.05), PAPER)
    (first,) = upscale([IMAGE], [3], noisy(0.05), PAPER, Options.of(PAPER, samples=5))
    np.testing.assert_array_equal(one.upscaled, first.upscaled)
    assert one.spread is None
    assert first.spread is not None


def test_the_mean_is_that_of_the_samples_and_the_spread_their_scaled_scatter() -> None:
    generate, lr = noisy(0.05), IMAGE[None]
    cubic = read_history(None, "auto")
    drawn = [faithful_to(IMAGE, generate(lr, [seed]).images[0], cubic) for seed in (3, (3, 1), (3, 2), (3, 3))]
    (result,) = upscale([IMAGE], [3], generate, PAPER, Options.of(PAPER, samples=4, output="mean", faithful=True))
    np.testing.assert_allclose(result.upscaled, np.mean(drawn, axis=0), atol=1e-6)
    assert result.spread is not None and result.expected_error is None
    np.testing.assert_allclose(result.spread, np.float32(PAPER.band.scale(4)) * scatter(drawn), rtol=1e-4)


def test_networks_that_tell_their_doubt_need_one_sample_for_the_spread() -> None:
    band = BEST.band
    for samples in (1, 4):
        (result,) = upscale([IMAGE], [3], telling(history(0)), BEST, Options.of(BEST, samples=samples))
        assert result.spread is not None and result.expected_error is not None and band.error is not None
        np.testing.assert_allclose(result.spread, 0.02 * band.scale(samples), rtol=1e-5)  # type: ignore[operator]
        assert result.expected_error == pytest.approx(0.02 * band.error)


def test_the_band_of_a_noisy_image_is_wider() -> None:
    clean, noisy = (upscale([IMAGE], [3], telling(history(0, noise)), BEST)[0] for noise in (0.3, 5.0))
    assert clean.spread is not None and noisy.spread is not None
    np.testing.assert_allclose(noisy.spread, BEST.band.noisy * clean.spread, rtol=1e-5)


def test_scatter_is_the_deviation_around_a_pixel_and_never_zero(rng: np.random.Generator) -> None:
    drawn = [0.5 + 0.02 * rng.standard_normal((64, 64)).astype(np.float32) for _ in range(16)]
    assert scatter(drawn).mean() == pytest.approx(0.02, rel=0.05)
    assert scatter(drawn).std() < 0.2 * np.std(drawn, axis=0).std()
    assert 0 < scatter([drawn[0]] * 2).max() < 0.5 / 255


def test_the_band_is_wider_where_pixels_are_of_a_size_not_trained_on() -> None:
    preset = replace(BEST, band=replace(BEST.band, strange=2.0), pixel_mm=(1.3, 7.0))
    sizes = (None, 1.3, 7.0, 0.2, 20.0)
    found = upscale([IMAGE] * 5, [3] * 5, telling(history(0)), preset, pixel_mm=sizes)
    usual = found[0].spread, found[0].expected_error
    assert usual[0] is not None and usual[1] is not None
    for result, wider in zip(found, (1, 1, 1, 2, 2), strict=True):
        assert result.spread is not None
        np.testing.assert_allclose(result.spread, wider * usual[0], rtol=1e-5)
        assert result.expected_error == pytest.approx(wider * usual[1])


def test_faithful_results_reduce_to_the_image() -> None:
    for options in ({}, {"samples": 4, "output": "mean"}):
        (result,) = upscale([IMAGE], [0], noisy(0.05), BEST, Options.of(BEST, **options))  # type: ignore[arg-type]
        assert np.abs(downscale(result.upscaled) - IMAGE).max() < 1e-3
        assert result.lr_error == pytest.approx(np.abs(downscale(result.upscaled) - IMAGE).max(), abs=1e-5)
    (free,) = upscale([IMAGE], [0], noisy(0.05), BEST, Options.of(BEST, faithful=False))
    assert free.lr_error > 0.05


def test_results_reduce_as_the_image_was_reduced_found_or_told() -> None:
    (found,) = upscale([IMAGE], [0], telling(history(1)), BEST)
    assert found.history.reduction == "area"
    assert found.lr_error < 1e-3 < np.abs(downscale(found.upscaled) - IMAGE).max()
    (said,) = upscale([IMAGE], [0], telling(history(1)), BEST, Options.of(BEST, degradation="lanczos"))
    assert said.history.reduction == "lanczos"
    assert said.lr_error < 1e-3


def test_noise_is_not_followed() -> None:
    (result,) = upscale([IMAGE], [0], telling(history(0, noise=10)), BEST)
    assert result.history.noise == pytest.approx(10 * LEVEL)
    assert result.lr_error > 0.02


def test_no_more_than_a_batch_goes_through_the_networks_at_once() -> None:
    batches: list[int] = []
    upscale([IMAGE] * 5, [0, 1, 2, 3, 4], noisy(0.1, batches), BEST, Options.of(BEST, samples=10))
    assert sum(batches) == 50
    assert max(batches) == MAX_BATCH
    batches.clear()
    upscale([np.zeros((512, 512), np.float32)], [0], noisy(0.1, batches), BEST, Options.of(BEST, samples=3))
    assert batches == [1, 1, 1]
