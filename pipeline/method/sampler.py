"""DDPM and DDIM in one function (Ho et al. 2020; Song et al. 2021, eq. 12 and 16). NumPy only, no torch.

Both samplers are one affine step, z_prev = a·z_t + b·prediction + σ·noise, whatever the network predicts; DDPM is
DDIM with η = 1. The coefficients are Python floats, so the same code runs on NumPy arrays and on torch tensors of any
device. The network and the source of noise are injected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.method.schedule import Schedule, add_noise
from pipeline.spec import UNROLLED_STEPS, Prediction, SamplerName

Z = TypeVar("Z", bound=Any)

ETA: dict[SamplerName, float] = {"ddpm": 1.0, "ddim": 0.0}
"""Sampler ⇒ stochasticity η of its steps."""


@dataclass(frozen=True)
class Step:
    """The coefficients of ``advance``: numbers or, in an exported graph, tensors."""

    t: Any
    z: Any
    predicted: Any
    sigma: Any


def advance(z: Z, step: Step, predicted: Z, noise: Z | None = None) -> Z:
    """Return z_prev = ``step.z``·z_t + ``step.predicted``·prediction(z_t, t) + ``step.sigma``·noise."""
    z = z * step.z + predicted * step.predicted
    return z if noise is None else z + noise * step.sigma


Watch = Callable[[int, Z, int], None]
"""(steps just taken, z_t, t), called between steps, but not after the last."""

StepMany = Callable[[Z, NDArray[np.float32], list[Z]], Z]
"""(z_t, coefficients [UNROLLED_STEPS, 4]: t, z, predicted, sigma; noise per step) ⇒ z after UNROLLED_STEPS steps."""


def rows(path: Sequence[Step]) -> NDArray[np.float32]:
    """Return steps as rows (t, z, predicted, sigma), the input of exported graphs: [len(path), 4]."""
    return np.array([(s.t, s.z, s.predicted, s.sigma) for s in path], np.float32)


def timesteps(T: int, steps: int) -> list[int]:
    """Return ``steps`` timesteps from T-1 down, evenly spaced ("trailing"), so that every run starts at full noise.

    Raises:
        ValueError: ``steps`` is not in 1 … T.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"'steps' must be 1–{T}, got {steps}")
    return [round(T - i * T / steps) - 1 for i in range(steps)]


def trajectory(schedule: Schedule, steps: int, eta: float, prediction: Prediction = "eps") -> list[Step]:
    """Return the coefficients of every step.

    With ᾱ' = ᾱ of the next timestep (1 after the last), σ² = η²·(1-ᾱ')/(1-ᾱ)·(1-ᾱ/ᾱ') and
    z_prev = √ᾱ'·ẑ_0 + √(1-ᾱ'-σ²)·ε + σ·noise. A network that predicts ε gives ẑ_0 = (z_t - √(1-ᾱ)·ε)/√ᾱ; one that
    predicts v gives ẑ_0 = √ᾱ·z_t - √(1-ᾱ)·v and ε = √(1-ᾱ)·z_t + √ᾱ·v, even at pure noise (ᾱ = 0).

    Raises:
        ValueError: ``steps`` is not in 1 … T, or ``eta`` not in 0 … 1.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"'eta' must be 0–1, got {eta}")
    times = timesteps(schedule.T, steps)
    return [step(schedule, t, previous, eta, prediction) for t, previous in zip(times, [*times[1:], None], strict=True)]


def step(schedule: Schedule, t: int, previous: int | None, eta: float, prediction: Prediction) -> Step:
    """Return the coefficients of the step from ``t`` to ``previous``, or to z_0 if None; see ``trajectory``."""
    alpha_bar = float(schedule.alpha_bar[t])
    alpha_bar_prev = 1.0 if previous is None else float(schedule.alpha_bar[previous])
    variance = eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    signal, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    signal_prev, direction = alpha_bar_prev**0.5, (1 - alpha_bar_prev - variance) ** 0.5
    if prediction == "eps":
        z, predicted = signal_prev / signal, direction - signal_prev * sigma / signal
    else:
        z, predicted = signal_prev * signal + direction * sigma, direction * signal - signal_prev * sigma
    return Step(t, z, predicted, variance**0.5)


Seed = int | tuple[int, int]
"""Seed of a sample: the image's seed, or (the image's seed, sample number)."""


def seed_sequence(seed: Seed) -> np.random.SeedSequence:
    """Return a seed sequence independent of those of all other images and samples."""
    if isinstance(seed, tuple):
        return np.random.SeedSequence(seed[0], spawn_key=seed[1:])
    return np.random.SeedSequence(seed)


def image_noise(seeds: Sequence[Seed], shape: tuple[int, ...]) -> Callable[[], NDArray[np.float32]]:
    """Return a source of standard normal noise, [len(seeds), *shape] per call, with one generator per sample.

    A sample's noise depends only on its own seed, not on its batch.
    """
    generators = [np.random.default_rng(seed_sequence(seed)) for seed in seeds]
    return lambda: np.stack([g.standard_normal(shape, dtype=np.float32) for g in generators])


def sample(
    denoise: Callable[[Z, int], Z],
    schedule: Schedule,
    noise: Callable[[], Z],
    *,
    steps: int,
    eta: float,
    prediction: Prediction = "eps",
    z_lr: Z | None = None,
    step_many: StepMany[Z] | None = None,
    watch: Watch[Z] | None = None,
) -> Z:
    """Draw HR latents.

    Args:
        denoise: (z_t, t) ⇒ ε or v, of z_t's shape.
        schedule: ᾱ_t.
        noise: return fresh standard normal noise of z_t's shape on every call.
        steps: denoising steps, 1 … T.
        eta: 1 for DDPM, 0 for deterministic DDIM (see ``ETA``), or between.
        prediction: what ``denoise`` returns.
        z_lr: LR latent to noise to t = T-1 as the start; None: start from pure noise, as in the paper.
        step_many: take UNROLLED_STEPS steps at once as long as that many remain; ``denoise`` takes the rest.
        watch: called between calls of the network.

    Returns:
        z_0 of the noise's shape and dtype.

    Raises:
        ValueError: ``steps`` or ``eta`` is out of range.
    """
    path = trajectory(schedule, steps, eta, prediction)
    z = noise() if z_lr is None else add_noise(z_lr, noise(), schedule, path[0].t)
    while path:
        count = UNROLLED_STEPS if step_many and len(path) >= UNROLLED_STEPS else 1
        now, path = path[:count], path[count:]
        if step_many and count > 1:
            z = step_many(z, rows(now), [noise() if step.sigma > 0 else z * 0.0 for step in now])
        else:
            z = advance(z, now[0], denoise(z, now[0].t), noise() if now[0].sigma > 0 else None)
        if watch and path:
            watch(count, z, path[0].t)
    return z
