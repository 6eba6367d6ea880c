"""The measures beside PSNR and LPIPS: each sees what it is named after, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.presets import DEFAULT
from train import fidelity
from train.data import PairDataset, list_pairs
from train.fidelity import own_error, text_mask
from train.methods import bicubic

THRESHOLDS = {"invented": 0.05, "invented_common": 0.1}


def chest() -> np.ndarray:  # type: ignore[type-arg]
    """Dark above, smooth below, with a burnt-in marker."""
    y, x = np.mgrid[0:128, 0:128].astype(np.float32) / 128
    image = np.where(y < 0.4, 0.1, 0.4 + 0.1 * np.sin(20 * x)).astype(np.float32)
    image[90:100, 20:30] = 1.0
    return image


def of(image: np.ndarray) -> dict[str, float]:  # type: ignore[type-arg]
    return fidelity.fidelity(image, chest(), THRESHOLDS)


def test_the_reference_itself_is_faultless() -> None:
    assert of(chest()) == {"text": 0, "edges": 0, "dark": 0, "invented": 0, "invented_common": 0}


def test_text_is_where_the_contrast_is_high() -> None:
    mask = text_mask(chest())
    assert mask[90, 20]
    assert not mask[100:, 60:].any()
    faded = chest()
    faded[90:100, 20:30] = 0.7
    assert of(faded)["text"] > 20
    assert of(faded)["dark"] == 0


def test_darkening_is_seen_with_its_sign() -> None:
    darker = chest()
    darker[darker < 0.15] -= 0.04
    assert of(darker)["dark"] == pytest.approx(-0.04 * 255, rel=1e-3)
    assert of(darker)["text"] == 0


def test_blurred_edges_cost_and_a_shift_of_gray_does_not() -> None:
    flat = chest()
    flat[60:] = np.where(flat[60:] == 1, 1, 0.4)
    assert of(flat)["edges"] > 1
    assert of(chest() + 0.01)["edges"] == pytest.approx(0, abs=1e-3)


def test_invented_is_the_share_of_pixels_beyond_the_threshold() -> None:
    image = chest()
    image[:16, :64] += 0.07
    found = of(image)
    assert found["invented"] == pytest.approx(100 * 16 * 64 / 128**2)
    assert found["invented_common"] == 0


def test_an_image_without_such_pixels_does_not_count() -> None:
    found = fidelity.fidelity(np.full((64, 64), 0.5), np.full((64, 64), 0.5), THRESHOLDS)
    assert np.isnan(found["text"])
    assert np.isnan(found["dark"])


def test_own_error_is_mean_and_two_deviations(data: Path) -> None:
    pairs = PairDataset(list_pairs(data)[:2], DEFAULT.data)
    lr, hr = (list(side) for side in zip(*(pairs.unit_images(i) for i in range(2)), strict=True))
    errors = np.abs(np.stack(bicubic(lr, hr, [])) - np.stack(hr))
    assert own_error(pairs, bicubic) == pytest.approx(errors.mean() + 2 * errors.std(), rel=1e-5)


@pytest.mark.slow
def test_command_compares_presets(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fidelity.main(["--data", str(data), "--limit", "1", "--presets", "best", "paper"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 images of 1 patients, split test; gray levels (0–255) or percent"
    assert [line.split(" (")[0] for line in lines[5:]] == ["| preset best", "| preset paper"]
    assert lines[4].startswith("| bicubic |")


def test_missing_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fidelity.main(["--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: '{tmp_path}' has no HR_256/ and LR_64/")
