"""Training data: the patient-wise split, augmentation, pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images import downscale
from pipeline.spec import PAPER
from train.data import augment, list_images, network_pair, patient_of, read_gray, split_by_patient


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=60), seed=st.integers(0, 2**31))
def test_no_patient_is_on_two_sides_and_no_file_is_lost(counts: list[int], seed: int) -> None:
    paths = [Path(f"{p:08}_{i:03}.png") for p, n in enumerate(counts) for i in range(n)]
    sides = split_by_patient(paths, PAPER.data, seed)
    assert sorted(p for side in sides.values() for p in side) == paths
    patients = [{patient_of(p) for p in side} for side in sides.values()]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    assert abs(len(patients[0]) - 0.7 * len(counts)) <= 1


def test_split_depends_on_nothing_but_patients_and_seed() -> None:
    paths = [Path(f"{p:08}_000.png") for p in range(50)]
    assert split_by_patient(paths, PAPER.data) == split_by_patient(paths[::-1], PAPER.data)
    assert split_by_patient(paths, PAPER.data, 1) != split_by_patient(paths, PAPER.data, 2)


def test_augmentation_is_a_flipped_crop_and_repeats_with_its_generator() -> None:
    image = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    a, b = (augment(image, 32, (0.5, 1.0), np.random.default_rng(3)) for _ in range(2))
    assert a.shape == (32, 32)
    np.testing.assert_array_equal(a, b)
    whole = {augment(image, 64, (1.0, 1.0), np.random.default_rng(s)).tobytes() for s in range(20)}
    assert whole == {image.tobytes(), np.ascontiguousarray(image[:, ::-1]).tobytes()}


def test_pairs_are_hr_and_its_upsampled_lr() -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    hr, lr = network_pair(image, 3)
    assert hr.shape == lr.shape == (3, 256, 256)
    np.testing.assert_allclose((hr[0] + 1) / 2 * 255, image, atol=1e-4)
    assert abs((lr[0] + 1) / 2 * 255 - np.kron(downscale(image), np.ones((4, 4)))).mean() < 60


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no PNG files in"):
        list_images(tmp_path)
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"'.*a\.png' is not a readable image"):
        read_gray(tmp_path / "a.png")
