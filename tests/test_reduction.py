"""Reductions as matrices, what is read of an image's history, and the projection onto LR images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from pipeline.method.images import downscale, downscale_by_area, upsample
from pipeline.method.reduction import (
    LEVEL,
    History,
    enlarge,
    faithful_to,
    gram_inverse,
    lr_error,
    matrix,
    read_history,
    reduce,
)
from pipeline.spec import ESTIMATES, REDUCTIONS, ReductionName
from tests.conftest import Array

EVERY = pytest.mark.parametrize("name", REDUCTIONS)
CUBIC = History("cubic")


def told(*likely: float, noise: float = 0.3) -> Array:
    """Models' answer: the probabilities of ``REDUCTIONS`` and of another, noise in gray levels, and upright."""
    return np.array([*likely, noise * LEVEL, 1, *[0] * 7], np.float32)


def test_matrices_are_the_libraries_reductions(rng: np.random.Generator) -> None:
    image = rng.random((400, 160), dtype=np.float32)
    np.testing.assert_allclose(reduce(image, "cubic"), downscale(image), atol=1e-5)
    np.testing.assert_allclose(reduce(image, "area"), downscale_by_area(image, 4), atol=1e-5)
    np.testing.assert_array_equal(reduce(image, "nearest"), image[2::4, 2::4])
    for name in ("bilinear", "bicubic", "lanczos"):
        pillow = PILImage.fromarray(image).resize((40, 100), PILImage.Resampling[name.upper()])
        np.testing.assert_allclose(reduce(image, name), np.asarray(pillow), atol=1e-5)


@EVERY
@pytest.mark.parametrize("n", [1, 2, 16, 65])
def test_the_inverse_undoes_the_reduction(name: ReductionName, n: int) -> None:
    np.testing.assert_allclose(matrix(name, n) @ matrix(name, n).T @ gram_inverse(name, n), np.eye(n), atol=1e-5)


@EVERY
def test_what_is_enlarged_reduces_to_itself(name: ReductionName, rng: np.random.Generator) -> None:
    for shape in ((9, 13), (65, 40)):
        lr = rng.random(shape, dtype=np.float32)
        np.testing.assert_allclose(reduce(enlarge(lr, name), name), lr, atol=1e-5)


@EVERY
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_projected_image_reduces_to_a_clean_lr_image(name: ReductionName, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lr = rng.uniform(0.4, 0.6, (height, width)).astype(np.float32)
    image = (upsample(lr) + 0.02 * rng.standard_normal((4 * height, 4 * width))).astype(np.float32)
    found = faithful_to(lr, image, History(name))
    np.testing.assert_allclose(reduce(found, name), lr, atol=2e-4)
    assert lr_error(found, lr, History(name)) < 2e-4
    np.testing.assert_allclose(faithful_to(lr, found, History(name)), found, atol=2e-4)


def test_projection_allows_what_the_reduction_clips() -> None:
    hr = np.zeros((8, 8), np.float32)
    hr[3, 1] = 1.0
    hr[4:, 4:] = 0.5  # a flat LR image would be flat in HR
    assert downscale(hr).min() < 0
    np.testing.assert_allclose(faithful_to(downscale(hr).clip(0, 1), hr, CUBIC), hr, atol=1e-6)


@EVERY
def test_what_is_flat_in_lr_is_flat(name: ReductionName, rng: np.random.Generator) -> None:
    lr = np.full((16, 16), 0.9, np.float32)
    image = (upsample(lr) + 0.01 * rng.standard_normal((64, 64))).astype(np.float32)
    np.testing.assert_array_equal(faithful_to(lr, image, History(name)), np.full((64, 64), 0.9, np.float32))
    lr[:, :8] = rng.random((16, 8))
    found = faithful_to(lr, image, History(name))
    # beside detail, where the kernels that look farthest see it too, there may be some
    np.testing.assert_allclose(found[:, 56:], 0.9, atol=0.01)
    assert np.ptp(found[:, :32]) > 0.5


def test_what_is_flat_in_a_noisy_image_need_not_be(rng: np.random.Generator) -> None:
    lr = np.full((16, 16), 0.9, np.float32)
    image = (upsample(lr) + 0.01 * rng.standard_normal((64, 64))).astype(np.float32)
    assert np.ptp(faithful_to(lr, image, History("area", 5 * LEVEL))) > 0.01


def test_projection_keeps_to_the_range(rng: np.random.Generator) -> None:
    lr = downscale(rng.integers(0, 2, (32, 32)).astype(np.float32)).clip(0, 1)
    found = faithful_to(lr, upsample(lr), CUBIC)
    assert found.min() >= 0
    assert found.max() <= 1
    assert lr_error(found, lr, CUBIC) < lr_error(upsample(lr).clip(0, 1), lr, CUBIC)


@pytest.mark.parametrize("name", ["cubic", "area", "nearest"])
def test_black_and_white_are_met_too(name: ReductionName, rng: np.random.Generator) -> None:
    hr = np.full((64, 64), 0.5, np.float32)
    hr[:, :11], hr[13:30, 20:50] = 0.0, 1.0
    lr = reduce(hr, name).clip(0, 1)
    image = (upsample(lr) + 0.05 * rng.standard_normal(hr.shape)).astype(np.float32)
    found = faithful_to(lr, image, History(name))
    assert lr_error(found, lr, History(name)) < 0.5 * LEVEL < lr_error(image.clip(0, 1), lr, History(name))


def test_the_noisier_the_lr_image_the_less_it_is_followed(rng: np.random.Generator) -> None:
    image = np.full((64, 64), 0.5, np.float32)
    lr = (0.5 + 5 * LEVEL * rng.standard_normal((16, 16))).astype(np.float32)
    found = [faithful_to(lr, image, History("area", noise * LEVEL)) for noise in (0.3, 2, 5, 20)]
    errors = [lr_error(of_one, lr, History("area")) for of_one in found]
    assert errors[0] < 1e-4
    assert errors == sorted(errors)
    assert errors[-1] > 0.95 * np.abs(lr - 0.5).max()


@pytest.mark.parametrize("name", ["area", "lanczos"])
def test_what_noise_cannot_have_changed_is_followed(name: ReductionName) -> None:
    lr = np.full((16, 16), 0.5, np.float32)
    lr[8, 8] = 0.9
    found = faithful_to(lr, np.full((64, 64), 0.5, np.float32), History(name, 5 * LEVEL))
    assert lr_error(found, lr, History(name)) < 3.1 * 5 * LEVEL


def test_a_reduction_that_may_be_another_is_followed_less(rng: np.random.Generator) -> None:
    image = rng.random((64, 64), dtype=np.float32)
    lr = np.clip(reduce(image, "area") + 0.05, 0, 1)
    sure, unsure = (faithful_to(lr, image, History("area", others=others)) for others in ((), (("nearest", 0.4),)))
    assert lr_error(sure, lr, History("area")) < lr_error(unsure, lr, History("area"))


def test_an_image_of_an_unknown_reduction_is_left_as_it_is(rng: np.random.Generator) -> None:
    image = rng.normal(0.5, 0.5, (16, 16)).astype(np.float32)
    np.testing.assert_array_equal(faithful_to(np.zeros((4, 4), np.float32), image, History(None)), image.clip(0, 1))


def test_without_a_restorer_images_are_the_protocols_unless_told() -> None:
    assert read_history(None, "auto") == History("cubic")
    assert read_history(None, "lanczos") == History("lanczos")


def test_few_pixels_tell_nothing() -> None:
    assert read_history(told(0, 1, 0, 0, 0, 0, 0, noise=9), "auto", 31 * 33) == History("cubic")
    assert read_history(told(0, 1, 0, 0, 0, 0, 0, noise=9), "auto", 32 * 32).reduction == "area"


def test_the_likeliest_reduction_counts_and_only_rivals_beside_it() -> None:
    found = read_history(told(0.1, 0.5, 0.05, 0.05, 0.3, 0.0, 0.0), "auto")
    assert found.reduction == "area"
    assert found.noise == pytest.approx(0.3 * LEVEL)
    assert [name for name, _ in found.others] == ["lanczos"]
    assert read_history(told(0.1, 0.2, 0.1, 0.1, 0.1, 0.0, 0.4), "auto").reduction is None
    assert len(told(0, 0, 0, 0, 0, 0, 0)) == ESTIMATES


def test_what_a_request_says_is_right_but_noise_is_found() -> None:
    found = read_history(told(0.9, 0.1, 0, 0, 0, 0, 0, noise=4), "area")
    assert (found.reduction, found.others) == ("area", ())
    assert found.noise == pytest.approx(4 * LEVEL)
