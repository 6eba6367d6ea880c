"""Training samples: squares of the given patients' radiographs, each with what is known of its history."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.method.images import downscale, downscale_by_area
from pipeline.spec import REDUCTIONS
from train.degrade import Degradation
from train.scans import MIN_NOISE, OTHER, Scans, draw_sample, draw_samples, mark, page

PATIENTS = {"00000001", "00000002"}


@pytest.fixture(scope="module")
def scans(data: Path) -> Scans:
    return Scans.read(data, (256, 512), PATIENTS, {})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_only_the_patients_asked_for_are_read_of_the_sizes_that_are_there(data: Path, tmp_path: Path) -> None:
    (tmp_path / "HR_256").symlink_to(data / "HR_256")
    (tmp_path / "HR_512").mkdir()
    cv2.imwrite(str(tmp_path / "HR_512" / "00000001_000.png"), np.zeros((512, 512), np.uint8))
    scans = Scans.read(tmp_path, (256, 512, 1024), PATIENTS, {})
    assert {size: len(images) for size, images in scans.images.items()} == {256: 4, 512: 1}
    assert sum(scans.shares.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="has no images of these patients"):
        Scans.read(tmp_path, (1024,), PATIENTS, {})


def test_a_sample_is_a_function_of_its_seed(scans: Scans) -> None:
    one, same, other = (draw_sample(scans, 64, rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.lr, same.lr)
    np.testing.assert_array_equal(one.hr, same.hr)
    assert not np.array_equal(one.hr, other.hr)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_clean_sample_is_labelled_by_its_reduction(scans: Scans, name: str) -> None:
    sample = draw_sample(scans, 64, rng(3), Degradation(kernel=name))  # type: ignore[arg-type]
    assert (sample.lr.shape, sample.hr.shape) == ((16, 16), (64, 64))
    assert REDUCTIONS[sample.reduction] == name
    assert MIN_NOISE <= sample.noise < 0.6, "rounding alone"


def test_lr_is_what_the_reduction_makes_of_hr_jpeg_or_not(scans: Scans) -> None:
    area = draw_sample(scans, 64, rng(3), Degradation(kernel="area"))
    np.testing.assert_array_equal(area.lr, downscale_by_area(area.hr, 4))
    jpeg = draw_sample(scans, 64, rng(3), Degradation(kernel="area", jpeg=95))
    assert np.abs(jpeg.lr.astype(int) - downscale_by_area(jpeg.hr, 4)).mean() < 3


def test_noise_is_the_lr_images_alone_and_measured(scans: Scans) -> None:
    clean, noisy = (draw_sample(scans, 128, rng(5), Degradation(noise=noise)) for noise in (0.0, 5.0))
    np.testing.assert_array_equal(clean.hr, noisy.hr)
    assert noisy.noise == pytest.approx(5, rel=0.2)


def test_blurred_images_are_of_another_reduction(scans: Scans) -> None:
    sample = draw_sample(scans, 64, rng(3), Degradation(blur=1.2))
    assert sample.reduction == OTHER
    assert sample.noise < 0.6


def test_pages_and_marks_are_drawn_in_every_way() -> None:
    pages = [page(96, rng(seed)) for seed in range(40)]
    assert {image.shape for image in pages} == {(96, 96)}
    assert len({image.tobytes() for image in pages}) > 30
    plain = np.full((96, 96), 100, np.uint8)
    changed = [np.mean(mark(plain, rng(seed)) != 100) for seed in range(40)]
    assert plain.min() == 100, "the original is kept"
    assert 0 < np.mean(changed) < 0.5


def test_a_batch_knows_what_the_protocol_would_have_made(scans: Scans) -> None:
    batch = draw_samples(scans, 64, [(0, i) for i in range(3)])
    assert batch.lr.shape == batch.protocol.shape == (3, 1, 16, 16)
    assert batch.hr.shape == (3, 1, 64, 64)
    assert batch.lr.min() >= -1 and batch.lr.max() <= 1
    np.testing.assert_allclose(batch.protocol[1, 0], downscale(batch.hr[1, 0].numpy()).clip(-1, 1), atol=1e-6)
