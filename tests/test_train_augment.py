"""The paper's augmentation: LR and HR stay aligned, and each operation comes as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.method.images import downscale, resize_cubic
from train.augment import Augmentation, apply, draw, random_crop
from train.paper import AUGMENTATION

SPEC = AUGMENTATION["paper"]


def smooth(seed: int) -> NDArray[np.uint8]:
    """A 256² image that loses nothing when it is downscaled."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.float32)
    return np.clip(resize_cubic(small, 256, 256), 0, 255).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_lr_of_the_augmented_hr_is_the_augmented_lr(seed: int) -> None:
    hr = smooth(seed)
    chosen = draw(SPEC, 64, np.random.default_rng(seed))
    found = downscale(apply(chosen, hr, 4)).astype(float)
    expected = apply(chosen, downscale(hr), 1).astype(float)
    difference = abs(found - expected)
    if chosen.cutout:
        top, left, side = chosen.cutout
        inside = np.zeros((64, 64), bool)
        inside[max(0, top - 2) : top + side + 2, max(0, left - 2) : left + side + 2] = True
        assert (apply(chosen, hr, 4)[4 * top : 4 * (top + side), 4 * left : 4 * (left + side)] == 0).all()
        difference = difference[~inside]
    assert difference.mean() < 1.5
    # the cubic of LR and that of HR extrapolate differently at the border
    assert difference.max() < 16


@pytest.mark.parametrize(
    ("augmentation", "expected"),
    [
        (Augmentation(), [[1, 2], [3, 4]]),
        (Augmentation(flip=True), [[2, 1], [4, 3]]),
        (Augmentation(quarter_turns=1), [[2, 4], [1, 3]]),
        (Augmentation(cutout=(0, 1, 1)), [[1, 0], [3, 4]]),
        (Augmentation(crop=(1, 0, 1)), [[3, 3], [3, 3]]),
    ],
)
def test_operations(augmentation: Augmentation, expected: list[list[int]]) -> None:
    image = np.array([[1, 2], [3, 4]], np.uint8)
    np.testing.assert_array_equal(apply(augmentation, image, 1), expected)
    np.testing.assert_array_equal(
        apply(augmentation, np.kron(image, np.ones((4, 4), np.uint8)), 4), np.kron(expected, np.ones((4, 4)))
    )


def test_frequencies_are_the_papers() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw(SPEC, 64, rng) for _ in range(4000)]
    changed = [a for a in drawn if a != Augmentation()]
    assert len(changed) / len(drawn) == pytest.approx(0.70, abs=0.03)
    assert np.mean([a.flip for a in changed]) == pytest.approx(0.50, abs=0.03)
    assert np.mean([a.crop is not None for a in changed]) == pytest.approx(0.80, abs=0.03)
    assert np.mean([a.cutout is not None for a in changed]) == pytest.approx(0.30, abs=0.03)
    assert {a.quarter_turns for a in changed} == {1, 2, 3}
    assert {a.cutout[2] for a in changed if a.cutout} == {13}, "a fifth of 64 pixels"
    assert all(51 <= a.crop[2] <= 64 for a in changed if a.crop)


def test_random_crop_is_a_piece_or_its_mirror_image() -> None:
    lr = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    hr = np.kron(lr, np.ones((4, 4), np.uint16))
    whole = {random_crop(lr, hr, 64, np.random.default_rng(s))[0].tobytes() for s in range(20)}
    assert whole == {lr.tobytes(), np.ascontiguousarray(lr[:, ::-1]).tobytes()}
    for seed in range(5):
        piece, same = random_crop(lr, hr, 16, np.random.default_rng(seed))
        assert abs(int(piece[0, 1]) - int(piece[0, 0])) == 1
        assert piece[1, 0] - piece[0, 0] == 64
        np.testing.assert_array_equal(same, np.kron(piece, np.ones((4, 4), np.uint16)))
