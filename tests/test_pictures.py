"""The labelled comparison."""

from __future__ import annotations

import numpy as np

from pipeline.images import upsample
from pipeline.pictures import comparison, labelled_row


def test_comparison_shows_all_four_images(rng: np.random.Generator) -> None:
    lr = rng.random((64, 64), dtype=np.float32)
    hr, upscaled = np.clip(upsample(lr), 0, 1), rng.random((256, 256), dtype=np.float32)
    picture = np.asarray(comparison(lr, upscaled, hr))
    assert picture.shape[1] > 4 * 256
    top = next(
        y
        for y in range(picture.shape[0])
        if (picture[y : y + 256, 4:260] == np.kron(np.rint(lr * 255), np.ones((4, 4)))).all()
    )
    for i, image in enumerate((hr, upscaled, hr), start=1):
        left = 4 + i * 260
        np.testing.assert_array_equal(picture[top : top + 256, left : left + 256], np.rint(image * 255))
    assert (picture[:top] < 128).any(), "the labels stand above the images"
    assert (picture[top + 256 :] < 128).any(), "the caution stands below"


def test_comparison_without_a_reference_has_three(rng: np.random.Generator) -> None:
    lr = rng.random((16, 16), dtype=np.float32)
    three = comparison(lr, upsample(lr))
    four = comparison(lr, upsample(lr), upsample(lr))
    assert three.width < four.width


def test_row_without_caption(rng: np.random.Generator) -> None:
    panel = ("title", "", rng.random((64, 64), dtype=np.float32))
    assert labelled_row([panel]).height < labelled_row([panel], "caption").height
