"""The labelled comparison."""

from __future__ import annotations

import numpy as np

from client.pictures import comparison, labelled_row, uncertainty_map
from pipeline.method.images import upsample


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


def test_the_map_of_uncertainty_is_hot_where_the_spread_is_large(rng: np.random.Generator) -> None:
    image, spread = rng.random((64, 96), dtype=np.float32), np.zeros((64, 96), np.float32)
    spread[:, 48:] = 0.1
    picture = np.asarray(uncertainty_map(image, spread)).astype(int)
    gray = np.rint(image * 255).astype(int)
    top = next(y for y in range(len(picture)) if (picture[y, 4:52] == gray[0, :48, None]).all())
    certain, doubtful = picture[top : top + 64, 4:52], picture[top : top + 64, 52:100]
    np.testing.assert_array_equal(certain, np.repeat(gray[:, :48, None], 3, axis=2))
    assert (doubtful.max(axis=2) > doubtful.min(axis=2)).all(), "in colour"
    bar = picture[top : top + 64, 4 + 96 + 4 + 2]
    assert bar[0].sum() > bar[32].sum() > bar[63].sum()


def test_the_map_of_no_uncertainty_is_the_image(rng: np.random.Generator) -> None:
    image = rng.random((64, 64), dtype=np.float32)
    picture = np.asarray(uncertainty_map(image, np.zeros_like(image)))
    assert any((picture[y : y + 64, 4:68, 1] == np.rint(image * 255)).all() for y in range(picture.shape[0] - 64))
