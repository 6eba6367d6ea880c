"""The band: calibrated so that it holds what it says, on other images of the same kind too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import eager
from pipeline.serve import ROOT
from pipeline.spec import DEFAULT, MAX_SAMPLES
from pipeline.superres import upscale
from train import calibrate
from train.calibrate import COUNTS, coverage, fit, scatter
from train.data import PairDataset, list_pairs


def drawn_scatter(seed: int, pixels: int = 40_000) -> calibrate.Scatter:
    """Of samples that are as far from each other as from HR."""
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.01, 0.1, pixels)
    hr = sigma * rng.standard_normal(pixels)
    samples = sigma * rng.standard_normal((MAX_SAMPLES, pixels))
    return {
        count: calibrate.Pixels(
            np.abs(hr - samples[:count].mean(axis=0)).astype(np.float32),
            samples[:count].std(axis=0, ddof=1).astype(np.float32),
        )
        for count in COUNTS
    }


def test_nine_of_ten_pixels_of_other_images_lie_within_the_band() -> None:
    band = fit(drawn_scatter(0))
    for share, _ in coverage(drawn_scatter(1), band).values():
        assert share == pytest.approx(0.9, abs=0.01)


def test_more_samples_make_a_narrower_band() -> None:
    found = drawn_scatter(0)
    band = fit(found)
    scales, widths = [scale for _, scale in band.scales], [width for _, width in coverage(found, band).values()]
    assert [count for count, _ in band.scales] == list(COUNTS)
    assert scales == sorted(scales, reverse=True)
    assert widths == sorted(widths, reverse=True)


def test_a_band_that_is_too_narrow_is_seen() -> None:
    found = drawn_scatter(0)
    band = fit(found)
    narrow = replace(band, scales=tuple((count, scale / 2) for count, scale in band.scales))
    assert all(share < 0.85 for share, _ in coverage(found, narrow).values())


def test_the_scatter_is_that_of_the_pipelines_samples(data: Path) -> None:
    pairs = PairDataset(list_pairs(data)[:1], DEFAULT.data)
    system = eager.load(ROOT / "weights" / DEFAULT.name, DEFAULT)
    pixels = scatter(pairs, system)[4]
    lr, hr = pairs.unit_images(0)
    (result,) = upscale([lr], [0], system.generator(), DEFAULT, samples=4, output="mean")
    np.testing.assert_allclose(pixels.error, np.abs(hr - result.upscaled).ravel(), atol=1e-5)
    expected = DEFAULT.band.scale(4) * pixels.doubt
    assert result.spread is not None
    np.testing.assert_allclose(result.spread.ravel(), expected, rtol=1e-3, atol=1e-5)


def test_command(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.main(["--data", str(data), "--limit", "1"]) == 0
    text = capsys.readouterr().out
    assert "1 images of 1 patients, split val; preset best" in text
    assert "fitted to these images: Band(scales=((2, " in text
    assert calibrate.main(["--data", str(data), "--weights", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("error: cannot read 'nowhere/vae.safetensors'")
