"""Arrays: resampling by the paper's protocol, padding, PSNR, SSIM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn import functional as F

from pipeline.method.images import (
    crop_square,
    downscale,
    fold,
    from_network,
    pad_to_multiple,
    psnr,
    ssim,
    to_integers,
    to_network,
    upsample,
)

sides = st.integers(2, 70)


def test_upsample_equals_the_papers_baseline(rng: np.random.Generator) -> None:
    image = rng.random((17, 30), dtype=np.float32)
    expected = F.interpolate(torch.from_numpy(image)[None, None], scale_factor=4, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(upsample(image), expected[0, 0], atol=2e-6)


def test_downscale_is_opencvs_cubic_with_disjoint_footprints(rng: np.random.Generator) -> None:
    image = rng.random((16, 24), dtype=np.float32)
    taps = np.array([-0.09375, 0.59375, 0.59375, -0.09375])
    blocks = image.reshape(4, 4, 6, 4)
    np.testing.assert_allclose(downscale(image), np.einsum("aibj,i,j->ab", blocks, taps, taps), atol=1e-6)


def test_downscale_keeps_the_dtype_and_drops_the_remainder(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (67, 65), dtype=np.uint8)
    assert downscale(image).dtype == np.uint8
    np.testing.assert_array_equal(downscale(image), downscale(image[:64, :64]))


@given(height=sides, width=sides)
@settings(max_examples=50, deadline=None)
def test_padding_reflects_and_reaches_the_multiple(height: int, width: int) -> None:
    image = np.random.default_rng(height * 100 + width).random((height, width), dtype=np.float32)
    padded = pad_to_multiple(image, 16)
    assert all(p % 16 == 0 and 0 <= p - s < 16 for p, s in zip(padded.shape, image.shape, strict=True))
    np.testing.assert_array_equal(padded[:height, :width], image)
    assert np.isin(padded, image).all()
    if padded.shape[0] > height:
        np.testing.assert_array_equal(padded[height, :width], image[-2])


def test_network_format_round_trip(rng: np.random.Generator) -> None:
    image = rng.random((5, 7), dtype=np.float32)
    x = to_network(image, 3)
    assert x.shape == (3, 5, 7)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[0], image * 2 - 1, atol=1e-6)
    np.testing.assert_allclose(from_network(x), image, atol=1e-6)


def test_fold_is_space_to_depth(rng: np.random.Generator) -> None:
    images = rng.random((2, 3, 8, 12), dtype=np.float32)
    np.testing.assert_array_equal(fold(images, 2), F.pixel_unshuffle(torch.from_numpy(images), 2))


@pytest.mark.parametrize("bits", [8, 16])
def test_integers_round_and_saturate(bits: int) -> None:
    top = 2**bits - 1
    image = np.array([-1, 0, 0.4 / top, 0.6 / top, 1, 2], np.float32)
    found = to_integers(image, bits)
    assert found.dtype.itemsize * 8 == bits
    assert found.tolist() == [0, 0, 0, 1, top, top]


def test_crop_square_is_centred() -> None:
    image = np.arange(20).reshape(4, 5)
    np.testing.assert_array_equal(crop_square(image), image[:, :4])
    np.testing.assert_array_equal(crop_square(image.T), image.T[:4])


def test_metrics_equal_scikit_image(rng: np.random.Generator) -> None:
    image = rng.random((60, 80), dtype=np.float32)
    other = np.clip(image + 0.1 * rng.standard_normal(image.shape), 0, 1).astype(np.float32)
    a, b = to_integers(image, 8), to_integers(other, 8)
    assert psnr(other, image) == pytest.approx(peak_signal_noise_ratio(a, b), rel=1e-9)
    expected = structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert ssim(other, image) == pytest.approx(expected, abs=1e-9)


def test_metrics_of_equal_images(rng: np.random.Generator) -> None:
    image = rng.random((20, 20), dtype=np.float32)
    assert psnr(image, image) == float("inf")
    assert ssim(image, image) == pytest.approx(1)
