"""The band: calibrated so that it holds what it says, on other images of the same kind too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import ROOT
from pipeline.method.options import Options
from pipeline.method.upscale import upscale
from pipeline.networks import eager
from pipeline.presets import DEFAULT, Band
from train import calibrate
from train.calibrate import COUNTS, fit, observe
from train.data import PairDataset, list_pairs

Rows = dict[str, calibrate.Observations]


def observed(seed: int) -> Rows:
    """Two rows of images whose errors are as large as the doubt says; the first of all counts."""
    rng = np.random.default_rng(seed)

    def image(count: int, scale: float) -> calibrate.Observation:
        sigma = scale * rng.uniform(0.01, 0.1, (64, 64)).astype(np.float32)
        error = np.abs(sigma * rng.standard_normal((64, 64), dtype=np.float32)) * np.float32(1 + 1 / count)
        return calibrate.Observation(error, sigma, sigma > np.quantile(sigma, 0.9))

    return {
        "cubic": {count: [image(count, scale) for scale in (0.5, 1, 2)] for count in COUNTS},
        "noise5": {1: [image(1, scale) for scale in (1, 3)]},
    }


def share_within(rows: Rows, band: Band) -> float:
    every = [o for found in rows.values() for o in found[1]]
    scale = band.scale(1)
    assert scale is not None
    return float(np.mean([(o.error <= scale * o.doubt).mean() for o in every]))


def test_nine_of_ten_pixels_of_other_images_lie_within_the_band() -> None:
    band = fit(observed(0), predicts_doubt=True)
    assert share_within(observed(1), band) == pytest.approx(0.91, abs=0.01)


def test_more_samples_make_a_narrower_band() -> None:
    band = fit(observed(0), predicts_doubt=True)
    scales = [scale for _, scale in band.scales]
    assert [count for count, _ in band.scales] == list(COUNTS)
    assert scales == sorted(scales, reverse=True)


def test_noisy_images_have_a_factor_of_their_own() -> None:
    rows = observed(0)
    rows["noise5"] = {1: [o._replace(error=2 * o.error, noisy=True) for o in rows["noise5"][1]]}
    band = fit(rows, predicts_doubt=True)
    assert band.noisy == pytest.approx(2, rel=0.05)
    assert band.scale(1) == pytest.approx(fit(observed(0), predicts_doubt=True).scale(1), rel=0.03)
    shares = [float(line.split("|")[3].split("%")[0]) for line in calibrate.report(rows, band).splitlines()[2:]]
    assert shares == pytest.approx([90] * len(shares), abs=2)


def test_the_expected_error_is_the_mean_error() -> None:
    rows = observed(0)
    band = fit(rows, predicts_doubt=True)
    every = [o for found in rows.values() for o in found[1]]
    assert band.error is not None and band.usual is not None
    doubt, error = (np.mean([getattr(o, name).mean() for o in every]) for name in ("doubt", "error"))
    assert band.error * doubt == pytest.approx(error, rel=0.01)
    assert 0.05 < band.usual < 0.3


def test_scatter_has_no_band_of_one_sample_and_tells_no_error() -> None:
    rows = {"cubic": {count: images for count, images in observed(0)["cubic"].items() if count > 1}}
    band = fit(rows, predicts_doubt=False)
    assert (band.scale(1), band.error, band.usual) == (None, None, None)


def test_the_report_tells_each_rows_coverage_and_how_well_errors_are_ranked() -> None:
    rows = observed(0)
    band = fit(rows, predicts_doubt=True)
    narrow = replace(band, scales=tuple((count, scale / 2) for count, scale in band.scales))
    wide, lines = (calibrate.report(rows, b).splitlines() for b in (band, narrow))
    assert wide[-1].startswith("| noise5 | 1 |") and wide[-1].endswith("(1.00) |")
    shares = [float(text[-1].split("|")[3].split("%")[0]) for text in (wide, lines)]
    assert shares[0] == pytest.approx(90, abs=2)
    assert shares[1] < 70


def test_strong_gradients_are_a_tenth_of_the_pixels_and_at_the_edges() -> None:
    image = np.zeros((50, 50), np.float32)
    image[:, 25:] = np.linspace(0, 1, 50)[:, None]
    where = calibrate.strong(image)
    assert where[40, 25] and not where[40, 5]


@pytest.mark.slow
def test_what_is_observed_is_what_the_pipeline_draws(data: Path) -> None:
    pairs = PairDataset(list_pairs(data)[:1], DEFAULT.data)
    system = eager.load(ROOT / "weights" / DEFAULT.name, DEFAULT)
    (found,) = observe(pairs, system, (4,))[4]
    lr, hr = pairs.unit_images(0)
    (result,) = upscale([lr], [0], system.generator(), DEFAULT, Options.of(DEFAULT, samples=4, output="mean"))
    np.testing.assert_allclose(found.error, np.abs(hr - result.upscaled), atol=1e-5)
    assert result.spread is not None
    factor = DEFAULT.band.scale(4) * (DEFAULT.band.noisy if found.noisy else 1.0)  # type: ignore[operator]
    np.testing.assert_allclose(result.spread, factor * found.doubt, rtol=1e-3)


@pytest.mark.slow
def test_command(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.main(["--data", str(data), "--limit", "1", "--degradation", "cubic", "area"]) == 0
    text = capsys.readouterr().out
    assert "1 images of 1 patients, 256 pixels, split val; preset best" in text
    assert "\n| 256, area | 1 |" in text
    assert "fitted to these images: Band(scales=((1, " in text
    assert calibrate.main(["--data", str(data), "--weights", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("error: cannot read 'nowhere/vae.safetensors'")
