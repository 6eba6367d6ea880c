"""DDPM and DDIM as one function (Ho et al. 2020; Song et al. 2021, eq. 12 and 16). NumPy only, no torch.

Both samplers are one affine step, z_prev = a·z_t + b·ε + σ·noise; DDPM is DDIM with η = 1. The coefficients are
Python floats, so the same code runs on NumPy arrays and on torch tensors of any device. The network and the
source of noise are injected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.schedule import Schedule, add_noise
from pipeline.spec import SamplerName, Start

Z = TypeVar("Z", bound=Any)

ETA: dict[SamplerName, float] = {"ddpm": 1.0, "ddim": 0.0}
"""The stochasticity η that makes the step function that sampler."""


@dataclass(frozen=True)
class Step:
    """z_prev = ``z``·z_t + ``eps``·ε(z_t, t) + ``sigma``·noise."""

    t: int
    z: float
    eps: float
    sigma: float


def timesteps(T: int, steps: int) -> list[int]:
    """``steps`` timesteps from T-1 down, evenly spaced ("trailing"), so that every run starts at full noise.

    Raises:
        ValueError: ``steps`` is not in 1 … T.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps is {steps}, allowed are 1 to {T}")
    return [round(T - i * T / steps) - 1 for i in range(steps)]


def trajectory(schedule: Schedule, steps: int, eta: float) -> list[Step]:
    """The coefficients of every step.

    With ᾱ' = ᾱ of the next timestep (1 after the last), σ² = η²·(1-ᾱ')/(1-ᾱ)·(1-ᾱ/ᾱ') and
    z_prev = √ᾱ'·ẑ_0 + √(1-ᾱ'-σ²)·ε + σ·noise, where ẑ_0 = (z_t - √(1-ᾱ)·ε)/√ᾱ.

    Raises:
        ValueError: ``steps`` is not in 1 … T, or ``eta`` not in 0 … 1.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}, allowed are 0 to 1")
    times = timesteps(schedule.T, steps)
    result = []
    for t, previous in zip(times, [*times[1:], None], strict=True):
        alpha_bar = float(schedule.alpha_bar[t])
        alpha_bar_prev = 1.0 if previous is None else float(schedule.alpha_bar[previous])
        variance = eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        z = (alpha_bar_prev / alpha_bar) ** 0.5
        eps = (1 - alpha_bar_prev - variance) ** 0.5 - z * (1 - alpha_bar) ** 0.5
        result.append(Step(t, z, eps, variance**0.5))
    return result


def image_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Callable[[], NDArray[np.float32]]:
    """A source of standard normal noise, [len(seeds), *shape] a draw, with one generator an image.

    An image's noise depends on its own seed only, not on the batch it shares.
    """
    generators = [np.random.default_rng(seed) for seed in seeds]
    return lambda: np.stack([g.standard_normal(shape, dtype=np.float32) for g in generators])


def sample(
    denoise: Callable[[Z, Z, int], Z],
    z_lr: Z,
    schedule: Schedule,
    noise: Callable[[], Z],
    *,
    steps: int,
    eta: float,
    start: Start,
) -> Z:
    """Draw HR latents given LR latents.

    Args:
        denoise: (z_t, z_lr, t) ⇒ ε, all of z_lr's shape.
        z_lr: LR latents, float32 [B, C, h, w].
        schedule: ᾱ_t.
        noise: every call returns fresh standard normal noise of z_lr's shape.
        steps: denoising steps, 1 … T.
        eta: 1 for DDPM, 0 for deterministic DDIM (see ``ETA``), or between.
        start: "noise", pure noise as in the paper, or "lr", the LR latent noised to t = T-1.

    Returns:
        z_0, of z_lr's shape and dtype.

    Raises:
        ValueError: ``steps`` or ``eta`` is out of range.
    """
    path = trajectory(schedule, steps, eta)
    z = noise() if start == "noise" else add_noise(z_lr, noise(), schedule, path[0].t)
    for step in path:
        z = z * step.z + denoise(z, z_lr, step.t) * step.eps
        if step.sigma > 0:
            z = z + noise() * step.sigma
    return z
