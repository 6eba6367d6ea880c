"""The count of multiplications."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import arithmetic
from pipeline.networks.presentation import Presentation
from pipeline.presets import BEST, PAPER


@pytest.mark.slow
def test_best_takes_less_than_a_tenth_of_the_papers_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert arithmetic.main([]) == 0
    ratios = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(ratios) == ["paper, 300", "paper, 10", "best, 4", "best, 1"]
    assert ratios["paper, 300"] == 1
    assert ratios["best, 1"] < ratios["best, 4"] <= 0.1


def test_an_image_costs_one_unet_a_step_and_what_is_around() -> None:
    found = arithmetic.Arithmetic(unet=2.0, encoder=30.0, decoder=500.0)
    assert found.total(10) == 550.0
    assert arithmetic.arithmetic(PAPER, 64).encoder > 0
    assert arithmetic.arithmetic(BEST, 64).encoder == 0, "best needs no encoder at inference"


def test_four_times_the_pixels_cost_four_times() -> None:
    small, large = (arithmetic.arithmetic(BEST, side).decoder for side in (64, 128))
    with torch.no_grad():  # of an image of any size it sees as many pixels
        fixed = arithmetic.count(lambda: Presentation()(torch.empty(1, 1, 64, 64)))
    # the history's squares touch no border
    assert large - fixed == pytest.approx(4 * (small - fixed), rel=2e-4)


@pytest.mark.parametrize(
    "arguments", [["--run", "worst:3"], ["--run", "best"], ["--run", "best:0"], ["--run", "best:301"], ["--side", "65"]]
)
def test_impossible_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arithmetic.main(arguments)
    assert "must be" in capsys.readouterr().err
