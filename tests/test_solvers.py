"""The comparison of solvers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import solvers
from pipeline import ROOT
from pipeline.method.options import Options
from pipeline.networks import eager
from pipeline.presets import BEST


def test_one_step_of_both_solvers_is_the_same(rng: np.random.Generator) -> None:
    system = eager.load(ROOT / "weights" / "best", BEST)
    lr = rng.random((1, 16, 16), dtype=np.float32)
    found, expected = (
        generate(lr, [3])
        for generate in (solvers.dpm_solver(system, 1), system.generator(Options.of(system.preset, steps=1)))
    )
    np.testing.assert_allclose(found.images, expected.images, atol=1e-2)


def test_three_steps_differ(rng: np.random.Generator) -> None:
    system = eager.load(ROOT / "weights" / "best", BEST)
    lr = rng.random((1, 16, 16), dtype=np.float32)
    found, expected = (
        generate(lr, [3])
        for generate in (solvers.dpm_solver(system, 3), system.generator(Options.of(system.preset, steps=3)))
    )
    assert not np.allclose(found.images, expected.images, atol=1e-4)


@pytest.mark.slow
def test_command(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = str(ROOT / "weights" / "best")
    assert solvers.main(["--data", str(data), "--limit", "1", "--weights", weights, "--steps", "3"]) == 0
    text = capsys.readouterr().out
    assert "| DPM-Solver++(2M), 3 steps |" in text
    assert "| PyTorch: DDIM, 3 steps, from pure noise |" in text
    assert solvers.main(["--data", str(data), "--weights", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("error: cannot read 'nowhere/vae.safetensors'")
