"""Images that are turned or inverted are upscaled as the upright ones, and come back as they were given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from client.files import read_image
from pipeline import ROOT
from pipeline.method.images import crop_square, from_integers, resize_cubic
from pipeline.method.presentation import MIN_CONFIDENCE, rotate, upright
from pipeline.method.sampled import Array, Generate, Sampled
from pipeline.method.sampler import Seed
from pipeline.method.upscale import upscale
from pipeline.networks import eager
from pipeline.presets import BEST, DEFAULT
from pipeline.spec import HISTORY, PRESENTATIONS
from train.degrade import DEGRADATION_ROWS, degrade

SHAPE = (32, 40)


def told(lr: Array, sure: float = 1.0) -> Array:
    """The brightest half is a radiograph's upper one."""
    found = np.zeros((len(lr), HISTORY + len(PRESENTATIONS)), np.float32)
    for image, row in zip(lr, found, strict=True):
        h, w = (side // 2 for side in image.shape)
        halves = image[:h], image[:, :w], image[h:], image[:, w:]
        row[HISTORY + int(np.argmax([half.mean() for half in halves]))] = sure
    return found


def recorder(seen: list[tuple[Array, list[Seed]]], tell: Callable[[Array], Array] = told) -> Generate:
    """Enlarges images fourfold, and remembers them; the doubt is the image plus 1."""

    def generate(lr: Array, seeds: Sequence[Seed]) -> Sampled:
        seen.append((lr, list(seeds)))
        images = lr.repeat(4, axis=1).repeat(4, axis=2)
        return Sampled(images, images + 1, tell(lr))

    return generate


def ramp(turns: int, rng: np.random.Generator) -> Array:
    """[h, w] in [0, 1], brighter towards the top, turned."""
    image = np.linspace(1, 0, SHAPE[0], dtype=np.float32)[:, None] + 0.05 * rng.random(SHAPE, dtype=np.float32)
    return rotate(image.clip(0, 1), turns)


@pytest.mark.parametrize("turns", range(4))
def test_the_networks_see_images_upright_and_results_are_turned_back(turns: int, rng: np.random.Generator) -> None:
    seen: list[tuple[Array, list[Seed]]] = []
    lr = np.stack([ramp(turns, rng) for _ in range(2)])
    found = upright(recorder(seen))(lr, [4, 5])
    assert len(seen) == (1 if turns == 0 else 2)
    np.testing.assert_array_equal(seen[-1][0], rotate(lr, -turns))
    assert seen[-1][1] == [4, 5]
    expected = lr.repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(found.images, expected, atol=1e-6)
    assert found.doubt is not None
    np.testing.assert_allclose(found.doubt, 1 + expected, atol=1e-6)


def test_only_those_of_a_batch_that_are_turned_are_drawn_again(rng: np.random.Generator) -> None:
    seen: list[tuple[Array, list[Seed]]] = []
    lr = np.stack([ramp(turns, rng) for turns in (0, 2, 0, 2)])
    upright(recorder(seen))(lr, [10, 11, (12, 1), 13])
    assert [seeds for _, seeds in seen] == [[10, 11, (12, 1), 13], [11, 13]]


def test_inverted_images_are_inverted_for_the_networks_only(rng: np.random.Generator) -> None:
    def tell(lr: Array) -> Array:
        found = np.zeros((len(lr), HISTORY + len(PRESENTATIONS)), np.float32)
        found[:, HISTORY + PRESENTATIONS.index((0, True))] = 1
        return found

    seen: list[tuple[Array, list[Seed]]] = []
    lr = ramp(0, rng)[None]
    found = upright(recorder(seen, tell))(lr, [0])
    np.testing.assert_array_equal(seen[-1][0], 1 - lr)
    np.testing.assert_allclose(found.images[0, ::4, ::4], lr[0], atol=1e-6)


def test_who_is_not_sure_leaves_images_as_they_are(rng: np.random.Generator) -> None:
    seen: list[tuple[Array, list[Seed]]] = []
    upright(recorder(seen, lambda lr: told(lr, sure=MIN_CONFIDENCE - 0.01)))(ramp(2, rng)[None], [0])
    assert len(seen) == 1


def test_images_of_few_pixels_tell_nothing(rng: np.random.Generator) -> None:
    seen: list[tuple[Array, list[Seed]]] = []
    upright(recorder(seen))(ramp(2, rng)[None, :16], [0])
    assert len(seen) == 1


@pytest.fixture(scope="module")
def shipped() -> eager.Eager:
    return eager.load(ROOT / "weights" / DEFAULT.name, DEFAULT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["turned", "inverted"])
def test_a_radiograph_gains_as_much_turned_or_inverted(
    shipped: eager.Eager, name: str, rng: np.random.Generator
) -> None:
    path = get_testdata_file("RG1_UNCR.dcm")
    assert path is not None
    hr = np.rint(255 * resize_cubic(crop_square(read_image(path).image), 256, 256).clip(0, 1)).astype(np.uint8)

    def off(row: str) -> float:
        lr, target = (from_integers(image) for image in degrade(hr, DEGRADATION_ROWS[row], rng))
        (result,) = upscale([lr], [0], shipped.generator(), BEST)
        assert result.upscaled.shape == target.shape
        return float(np.square(result.upscaled - target).mean())

    assert off(name) == pytest.approx(off("cubic"), rel=0.02)
