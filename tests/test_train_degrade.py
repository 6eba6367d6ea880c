"""How LR images come to be."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image as PILImage

from pipeline.method.images import downscale
from pipeline.spec import REDUCTIONS, ReductionName
from train.degrade import DEGRADATION_ROWS, Degradation, degrade, draw, reduce

HR = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC
)
GRAY = np.full((64, 64), 128, np.uint8)


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_the_papers_protocol_is_one_of_them() -> None:
    lr, hr = degrade(HR, DEGRADATION_ROWS["cubic"], rng())
    np.testing.assert_array_equal(lr, downscale(HR))
    np.testing.assert_array_equal(hr, HR)


def test_kernels_are_what_their_names_say() -> None:
    np.testing.assert_allclose(reduce(HR, "area"), HR.reshape(16, 4, 16, 4).mean(axis=(1, 3)), atol=0.51)
    np.testing.assert_array_equal(
        reduce(HR, "lanczos"), np.asarray(PILImage.fromarray(HR).resize((16, 16), PILImage.Resampling.LANCZOS))
    )
    assert set(np.unique(reduce(HR, "nearest"))) <= set(np.unique(HR))
    small = [reduce(HR, kernel) for kernel in REDUCTIONS]
    assert all(image.shape == (16, 16) and image.dtype == np.uint8 for image in small)
    assert len({image.tobytes() for image in small}) == len(REDUCTIONS)


@pytest.mark.parametrize("kernel", REDUCTIONS)
def test_reduction_keeps_brightness_and_place(kernel: ReductionName) -> None:
    np.testing.assert_array_equal(degrade(GRAY, replace(Degradation(), kernel=kernel), rng())[0], 128)
    x = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))
    lr = degrade(x, replace(Degradation(), kernel=kernel), rng())[0]
    expected = (np.arange(16) * 4 + (2 if kernel == "nearest" else 1.5)) * 3
    np.testing.assert_allclose(lr[8, 2:-2], expected[2:-2], atol=1)


def test_noise_is_the_lr_images_alone() -> None:
    lr, hr = degrade(GRAY, Degradation(noise=5.0), rng())
    assert 4 < lr.std() < 6
    np.testing.assert_array_equal(hr, GRAY)
    np.testing.assert_array_equal(lr, degrade(GRAY, Degradation(noise=5.0), rng())[0])


def test_jpeg_of_less_quality_is_further_off() -> None:
    clean = degrade(HR, Degradation(), rng())[0].astype(int)
    errors = [np.abs(degrade(HR, Degradation(jpeg=q), rng())[0] - clean).mean() for q in (95, 50, 30)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_what_is_shown_changes_both_images() -> None:
    lr, hr = degrade(HR, Degradation(invert=True, turns=1), rng())
    np.testing.assert_array_equal(hr, np.rot90(255 - HR))
    np.testing.assert_array_equal(lr, downscale(np.ascontiguousarray(np.rot90(255 - HR))))
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    shown = degrade(ramp, Degradation(window=(0.2, 0.8)), rng())[1]
    assert (shown[0, 51], shown[0, 204]) == (0, 255)
    assert abs(int(shown[0, 128]) - 128) <= 1


def test_drawn_ones_are_many_and_depend_on_the_seed_alone() -> None:
    drawn = [draw(np.random.default_rng(i)) for i in range(400)]
    assert drawn[7] == draw(np.random.default_rng(7))
    assert {d.kernel for d in drawn} == set(REDUCTIONS)
    for share, chosen in (
        (0.3, [d.jpeg is not None for d in drawn]),
        (0.25, [d.noise > 0 for d in drawn]),
        (0.15, [d.window is not None for d in drawn]),
    ):
        assert abs(np.mean(chosen) - share) < 0.08
    for d in drawn[:40]:
        lr, hr = degrade(HR, d, rng())
        assert (lr.shape, hr.shape) == ((16, 16), (64, 64))
