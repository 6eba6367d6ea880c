"""Tables and CSV files of measurements."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from train.paper import REPORTED
from train.report import Measured, interval, overview, table, write_csv

PATIENTS = ["a", "a", "b", "c"]
RESULTS = {
    "bicubic": Measured(
        {"lpips_alex": np.array([0.3, 0.3, 0.4, 0.4]), "psnr": np.array([30.0, 31, 29, 30]), "ssim": np.full(4, 0.9)},
        0.001,
    ),
    "ours": Measured(
        {"lpips_alex": np.full(4, 0.14), "psnr": np.array([28.0, 29, 27, 28]), "ssim": np.full(4, 0.85)}, 1.5
    ),
}


def test_interval_covers_the_mean_at_the_rate_it_promises() -> None:
    rng = np.random.default_rng(0)
    groups = [str(i) for i in range(40)]
    hits = 0
    for _ in range(100):
        low, high = interval(rng.normal(1.0, 1.0, 40), groups)
        hits += low <= 1.0 <= high
    assert 87 <= hits <= 99


def test_interval_resamples_patients_not_images() -> None:
    """Ten images of each patient that say the same are worth one."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=20)
    one = interval(values, [str(i) for i in range(20)])
    ten = interval(np.repeat(values, 10), [str(i) for i in range(20) for _ in range(10)])
    pretended = interval(np.repeat(values, 10), [str(i) for i in range(200)])
    assert ten == pytest.approx(one)
    assert pretended[1] - pretended[0] < 0.5 * (ten[1] - ten[0])


def test_interval_of_equal_values_is_a_point() -> None:
    assert interval(np.full(4, 0.5), PATIENTS) == pytest.approx((0.5, 0.5))


def test_images_won_within_and_the_overview() -> None:
    def measured(lpips: float, inner: list[float], ssim: float) -> Measured:
        values = {"lpips_alex": np.full(4, lpips), "psnr_inner": np.array(inner), "ssim": np.full(4, ssim)}
        return Measured(values, 0.1)

    results = {"bicubic": measured(0.4, [30, 30, 30, 30], 0.9), "ours": measured(0.1, [31, 32, 29, 30.8], 0.91)}
    assert "| 30.70 [29.00, 31.50] (3) |" in table(results, PATIENTS).splitlines()[3]
    head, _, row, *_ = overview({"area": results}).splitlines()
    assert (head, row) == ("| LR by | ours |", "| area | ×0.250 / +0.70 dB (3) / +0.010 |")


def test_table_has_a_row_a_method_and_the_papers_rows() -> None:
    reported = [row for row in REPORTED if row.dataset == "nih"]
    head, rule, *rows = table(RESULTS, PATIENTS, reported).splitlines()
    assert head == "| method | LPIPS ↓ | PSNR (dB) ↑ | SSIM ↑ | LPIPS / bicubic | s / image |"
    assert rule.count("|") == head.count("|") == rows[0].count("|")
    assert (
        rows[1] == "| ours | 0.1400 [0.1400, 0.1400] | 28.00 [27.00, 28.50] | 0.8500 [0.8500, 0.8500] | 0.400 | 1.5 |"
    )
    assert rows[3] == "| *paper: PyTorch* | 0.1232 | 27.34 | 0.8647 | 0.355 | 7.02 |"
    assert len(rows) == 2 + len(reported)


def test_csv_has_a_line_an_image_and_method(tmp_path: Path) -> None:
    files = ["a_1.png", "a_2.png", "b.png", "c.png"]
    write_csv(tmp_path / "images.csv", RESULTS, files, PATIENTS)
    with open(tmp_path / "images.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    assert lines[6] == {
        "file": "b.png", "patient": "b", "method": "ours", "lpips_alex": "0.14", "psnr": "27", "ssim": "0.85"
    }  # fmt: skip
