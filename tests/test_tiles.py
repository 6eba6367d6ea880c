"""Images upscaled in tiles: as if they were upscaled as a whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest

from pipeline import ROOT
from pipeline.method import tiles
from pipeline.method.images import downscale_by_area
from pipeline.method.options import Options
from pipeline.method.presentation import rotate
from pipeline.method.tiles import MARGIN, SIDE, blended, rotated, starts, upscale_tiles, windows
from pipeline.method.upscale import Array, Networks, Result, generator, upscale
from pipeline.presets import BEST
from pipeline.runtimes.onnx import onnx_networks
from pipeline.spec import MAX_TILED_SIDE, SCALE


@pytest.mark.parametrize(("height", "width"), [(320, 336), (513, 16), (2048, 1000)])
def test_tiles_cover_every_pixel_once_with_their_margin(height: int, width: int) -> None:
    covered = np.zeros((height, width), int)
    for window in windows(height, width):
        covered[window.rows, window.columns] += 1
        for part, around, n in zip(window[:2], window[2:], (height, width), strict=True):
            assert around.start <= max(0, part.start - MARGIN)
            assert around.stop >= min(n, part.stop + MARGIN)
            assert around.stop - around.start == min(n, SIDE)
    assert (covered == 1).all()


@pytest.mark.parametrize("turns", range(-3, 4))
def test_a_rotated_window_has_the_rotated_pixels(turns: int) -> None:
    canvas = np.arange(640 * 720, dtype=np.float32).reshape(640, 720)
    for window in windows(*canvas.shape):
        turned = rotated(window, turns, *canvas.shape)
        around = turned.around(rotate(canvas, turns))
        np.testing.assert_array_equal(around, rotate(window.around(canvas), turns))
        np.testing.assert_array_equal(turned.crop(around), rotate(canvas[window.rows, window.columns], turns))


@pytest.mark.parametrize("n", [16, 512, 520, 896, MAX_TILED_SIDE // 2])
def test_parts_of_the_latent_cover_it_and_overlap(n: int) -> None:
    found = starts(n, 512, 128, 8)
    assert found[0] == 0
    assert found[-1] + 512 >= n
    assert all(a % 8 == 0 for a in found)
    assert all(b - a <= 512 - 128 for a, b in pairwise(found))


def test_blending_leaves_what_all_parts_agree_on(rng: np.random.Generator) -> None:
    z, c = rng.standard_normal((2, 1, 4, 40, 72)).astype(np.float32)
    np.testing.assert_allclose(blended(lambda z, c: z + 2 * c, z, c, 32, 8, 8), z + 2 * c, rtol=1e-5, atol=1e-5)


def radiograph(height: int, width: int) -> Array:
    """The radiograph of the demonstration."""
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    pixels = dcmread(get_testdata_file("RG1_UNCR.dcm")).pixel_array.astype(np.float32)
    # it stores white as 0
    return cv2.resize(1 - pixels / pixels.max(), (width, height), interpolation=cv2.INTER_AREA)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles to an image that is upscaled within a second."""
    monkeypatch.setattr(tiles, "SIDE", 176)


@pytest.fixture(scope="module")
def networks() -> Networks:
    return replace(onnx_networks(ROOT / "model_repository", BEST), fused=None)


def assembled(image: Array, found: list[tiles.Tile]) -> tuple[Array, Array]:
    upscaled, spread = np.full((2, *(SCALE * side for side in image.shape)), np.nan, np.float32)
    for top, left, result in found:
        height, width = result.upscaled.shape
        assert result.spread is not None
        upscaled[top : top + height, left : left + width] = result.upscaled
        spread[top : top + height, left : left + width] = result.spread
    return upscaled, spread


def whole(image: Array, networks: Networks, options: Options) -> Result:
    [result] = upscale([image], [3], generator(networks, BEST, options), BEST, options)
    return result


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "changes",
    [{}, {"steps": 2, "samples": 2, "output": "mean"}, {"sampler": "ddpm", "steps": 3, "faithful": False}],
    ids=str,
)
def test_tiles_are_those_of_the_whole_image(networks: Networks, changes: dict[str, object]) -> None:
    image, options = radiograph(240, 170), Options.of(BEST, degradation="area", **changes)  # type: ignore[arg-type]
    expected = whole(image, networks, options)
    upscaled, spread = assembled(image, list(upscale_tiles(image, 3, networks, BEST, options)))
    assert np.abs(upscaled - expected.upscaled).max() < 0.2 / 255
    # the estimate of errors also sees each tile's own history
    assert expected.spread is not None
    assert np.abs(spread - expected.spread).mean() < 0.2 / 255


@pytest.mark.slow
def test_a_rotated_and_inverted_image_is_upscaled_upright(networks: Networks) -> None:
    image, options = radiograph(400, 480), Options.of(BEST, degradation="area")
    shown = rotate(1 - image, 1)
    expected, _ = assembled(image, list(upscale_tiles(image, 3, networks, BEST, options)))
    found, _ = assembled(shown, list(upscale_tiles(shown, 3, networks, BEST, options)))
    assert np.abs(rotate(1 - found, -1) - expected).mean() < 0.5 / 255


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
def test_a_tile_reduces_to_its_part_of_the_image(networks: Networks) -> None:
    image, options = radiograph(250, 180), Options.of(BEST, degradation="area")
    found = list(upscale_tiles(image, 0, networks, BEST, options))
    upscaled, _ = assembled(image, found)
    assert np.abs(downscale_by_area(upscaled, SCALE) - image).max() < 1e-3
    assert max(tile.result.lr_error for tile in found) < 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
def test_no_seam_shows(networks: Networks) -> None:
    """Neighbouring pixels differ as much across the borders of tiles as beside them."""
    image, options = radiograph(190, 340), Options.of(BEST, degradation="area")
    borders = sorted({SCALE * window.columns.stop - 1 for window in windows(*image.shape) if window.columns.stop < 340})
    beside = [border + SCALE * k for border in borders for k in (-4, -3, -2, 2, 3, 4)]
    for pixels in assembled(image, list(upscale_tiles(image, 0, networks, BEST, options))):
        steps = np.abs(np.diff(pixels, axis=1)).mean(axis=0)
        assert steps[borders].mean() < 1.1 * steps[beside].mean()


def test_progress_counts_every_step_of_every_sample() -> None:
    options = Options.of(BEST, steps=3, samples=2, output="mean")
    counted: list[int] = []

    def restore(lr: Array) -> tuple[Array, Array]:
        return lr, np.full((1, 16), 0.01, np.float32)

    networks = Networks(
        encode=lambda image, _: image,
        denoise=lambda x, _: x[:, :4],
        decode=lambda _, lr: (np.repeat(np.repeat(lr, SCALE, 2), SCALE, 3),),
        restore=restore,
    )
    list(upscale_tiles(np.zeros((64, 64), np.float32), 0, networks, BEST, options, progress=counted.append))
    assert counted == [1] * 6
