"""The diffusion schedule as a table (Ho et al. 2020, eq. 2 and 4). NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.presets import DiffusionSpec

Z = TypeVar("Z", bound=Any)


@dataclass(frozen=True)
class Schedule:
    """ᾱ_t for t = 0 … T-1, float64 of shape [T]."""

    alpha_bar: NDArray[np.float64]

    @property
    def T(self) -> int:
        return len(self.alpha_bar)


def make_schedule(diffusion: DiffusionSpec) -> Schedule:
    """Return the preset's schedule; ᾱ_t = Π_{s ≤ t} (1 - β_s). See ``DiffusionSpec`` for the two types."""
    if diffusion.schedule == "linear":
        return Schedule(np.cumprod(1.0 - np.linspace(diffusion.beta_start, diffusion.beta_end, diffusion.T)))
    alpha_bar = np.cos(np.pi / 2 * np.arange(diffusion.T + 1) / diffusion.T) ** 2
    alpha_bar[-1] = 0.0
    return Schedule(alpha_bar[1:])


def add_noise(z_0: Z, noise: Z, schedule: Schedule, t: int) -> Z:
    """Return z_t = √ᾱ_t·z_0 + √(1-ᾱ_t)·ε for one timestep; NumPy arrays or torch tensors."""
    alpha_bar = float(schedule.alpha_bar[t])  # Python's floats preserve the dtype of their operands
    z_t: Z = z_0 * alpha_bar**0.5 + noise * (1.0 - alpha_bar) ** 0.5
    return z_t
