"""The schedule: β, ᾱ and forward noising."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DDPMScheduler

from pipeline.method.schedule import add_noise, make_schedule
from pipeline.presets import BEST, PAPER
from tests.conftest import exact_tables

SCHEDULE = make_schedule(PAPER.diffusion)


REFERENCE = exact_tables(DDPMScheduler(300, beta_start=1e-4, beta_end=0.02, beta_schedule="linear"))


def test_equals_diffusers() -> None:
    own = DDPMScheduler(300, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    np.testing.assert_allclose(SCHEDULE.alpha_bar, own.alphas_cumprod, rtol=1e-5)
    assert SCHEDULE.T == 300


def test_the_last_step_is_not_pure_noise() -> None:
    assert 0.21 < SCHEDULE.alpha_bar[-1] ** 0.5 < 0.23


def test_cosine_falls_to_pure_noise() -> None:
    schedule = make_schedule(BEST.diffusion)
    signal = schedule.alpha_bar**0.5
    np.testing.assert_allclose(signal, np.cos(np.pi / 2 * np.arange(1, schedule.T + 1) / schedule.T), atol=1e-12)
    assert signal[-1] == 0
    assert (np.diff(signal) < 0).all()


def test_add_noise_equals_diffusers_on_arrays_and_tensors(rng: np.random.Generator) -> None:
    z_0, noise = rng.standard_normal((2, 1, 4, 8, 8))
    for t in (0, 150, 299):
        expected = REFERENCE.add_noise(torch.from_numpy(z_0), torch.from_numpy(noise), torch.tensor([t]))
        np.testing.assert_allclose(add_noise(z_0, noise, SCHEDULE, t), expected, rtol=1e-9)
        torch.testing.assert_close(add_noise(torch.from_numpy(z_0), torch.from_numpy(noise), SCHEDULE, t), expected)


def test_add_noise_keeps_float32(rng: np.random.Generator) -> None:
    z_0, noise = rng.standard_normal((2, 1, 4, 8, 8), dtype=np.float32)
    assert add_noise(z_0, noise, SCHEDULE, 7).dtype == np.float32
