"""The sampler: equal to diffusers' schedulers under the same noise and network, and independent of the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.method.sampler import Step, advance, image_noise, sample, timesteps, trajectory
from pipeline.method.schedule import make_schedule
from pipeline.presets import BEST, PAPER
from pipeline.spec import UNROLLED_STEPS
from tests.conftest import Array, exact_tables, fake_denoise

SCHEDULE = make_schedule(PAPER.diffusion)
SHAPE = (4, 8, 8)
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}


def diffusers_sample(
    scheduler: Any, z_lr: Array, noise: Callable[[], Array], steps: int, step_options: Callable[[Array], dict[str, Any]]
) -> Array:
    """The usual loop around a diffusers scheduler; noise is drawn first for z_T, then for every step but the last."""
    scheduler.set_timesteps(steps)
    z = torch.from_numpy(noise())
    for i, t in enumerate(scheduler.timesteps.tolist()):
        eps = torch.from_numpy(fake_denoise(z.numpy(), z_lr, t))
        fresh = noise() if i + 1 < steps else np.zeros_like(z_lr)
        z = scheduler.step(eps, t, z, **step_options(fresh)).prev_sample
    result: Array = z.numpy()
    return result


def network(z_lr: Array) -> Callable[[Array, int], Array]:
    """A denoiser that sees these LR latents."""
    return lambda z_t, t: fake_denoise(z_t, z_lr, t)


def assert_equal(found: Array, expected: Array) -> None:
    assert found.dtype == np.float32
    # relative to the array's own size: where terms cancel, single elements near 0 have no relative precision
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def z_lr_of(seed: int, batch: int = 2) -> Array:
    return np.random.default_rng(1000 + seed).standard_normal((batch, *SHAPE), dtype=np.float32)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("steps", [300, 100, 50, 6, 1])
def test_ddpm_equals_diffusers(seed: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z_lr = z_lr_of(seed)
    scheduler = exact_tables(DDPMScheduler(300, **BETAS, clip_sample=False))
    fresh: list[Array] = []
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: torch.from_numpy(fresh.pop())
    )

    def options(noise: Array) -> dict[str, Any]:
        fresh[:] = [noise]
        return {}

    expected = diffusers_sample(scheduler, z_lr, image_noise([seed, seed + 9], SHAPE), steps, options)
    found = sample(network(z_lr), SCHEDULE, image_noise([seed, seed + 9], SHAPE), steps=steps, eta=1.0)
    assert_equal(found, expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("steps", [300, 100, 20, 4, 1])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_equals_diffusers(seed: int, steps: int, eta: float) -> None:
    z_lr = z_lr_of(seed)
    scheduler = exact_tables(DDIMScheduler(300, **BETAS, clip_sample=False, set_alpha_to_one=True))
    draw = image_noise([seed, seed + 9], SHAPE)
    first = draw()
    source = [first]
    expected = diffusers_sample(
        scheduler,
        z_lr,
        lambda: source.pop() if source else (draw() if eta > 0 else np.zeros_like(z_lr)),
        steps,
        lambda noise: {"eta": eta, **({"variance_noise": torch.from_numpy(noise)} if eta > 0 else {})},
    )
    found = sample(network(z_lr), SCHEDULE, image_noise([seed, seed + 9], SHAPE), steps=steps, eta=eta)
    assert_equal(found, expected)


@pytest.mark.parametrize("start", ["noise", "lr"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_does_not_depend_on_its_batch(start: Any, eta: float) -> None:
    z_lr = z_lr_of(5, batch=4)
    seeds = [3, 1, 4, 15]

    def run(rows: list[int]) -> Array:
        noise = image_noise([seeds[r] for r in rows], SHAPE)
        z = z_lr[rows]
        return sample(network(z), SCHEDULE, noise, steps=30, eta=eta, z_lr=z if start == "lr" else None)

    together = run([0, 1, 2, 3])
    for rows in ([2], [3, 0], [1, 2, 0]):
        np.testing.assert_array_equal(run(rows), together[rows])


def test_seeds_decide_the_noise() -> None:
    a, b = image_noise([7, 7], SHAPE)()
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(image_noise([7], SHAPE)()[0], image_noise([8], SHAPE)()[0])


def test_starting_from_the_lr_latent_noises_it_to_the_last_timestep() -> None:
    seen: list[tuple[int, Array]] = []

    def denoise(z_t: Array, t: int) -> Array:
        seen.append((t, z_t.copy()))
        return np.zeros_like(z_t)

    z_lr = z_lr_of(0)
    sample(denoise, SCHEDULE, image_noise([0, 1], SHAPE), steps=1, eta=0.0, z_lr=z_lr)
    ((t, z_t),) = seen
    assert t == 299
    signal = SCHEDULE.alpha_bar[299]
    expected = signal**0.5 * z_lr + (1 - signal) ** 0.5 * image_noise([0, 1], SHAPE)()
    np.testing.assert_allclose(z_t, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [300, 4, 1])
def test_a_perfect_denoiser_recovers_the_latent(eta: float, steps: int) -> None:
    z_0 = z_lr_of(1)

    def eps_of(z_t: Array, t: int) -> Array:
        a = float(SCHEDULE.alpha_bar[t])
        eps: Array = (z_t - a**0.5 * z_0) / (1 - a) ** 0.5
        return eps

    found = sample(eps_of, SCHEDULE, image_noise([0, 1], SHAPE), steps=steps, eta=eta)
    np.testing.assert_allclose(found, z_0, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [300, 4, 1])
def test_a_perfect_network_recovers_the_latent_from_pure_noise(eta: float, steps: int) -> None:
    z_0, schedule = z_lr_of(1), make_schedule(BEST.diffusion)

    def v_of(z_t: Array, t: int) -> Array:
        a = float(schedule.alpha_bar[t])
        eps = (z_t - a**0.5 * z_0) / (1 - a) ** 0.5
        v: Array = a**0.5 * eps - (1 - a) ** 0.5 * z_0
        return v.astype(np.float32)

    found = sample(v_of, schedule, image_noise([0, 1], SHAPE), steps=steps, eta=eta, prediction="v")
    np.testing.assert_allclose(found, z_0, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_v_and_eps_of_one_network_give_the_same_steps(eta: float) -> None:
    z_lr = z_lr_of(3)

    def v_of(z_t: Array, t: int) -> Array:
        a = float(SCHEDULE.alpha_bar[t])
        eps = fake_denoise(z_t, z_lr, t)
        v: Array = (eps - (1 - a) ** 0.5 * z_t) / a**0.5
        return v

    expected = sample(network(z_lr), SCHEDULE, image_noise([1, 2], SHAPE), steps=30, eta=eta)
    found = sample(v_of, SCHEDULE, image_noise([1, 2], SHAPE), steps=30, eta=eta, prediction="v")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("steps", [300, 100, 20, 4, 1])
def test_v_equals_diffusers(steps: int) -> None:
    z_lr = z_lr_of(0)
    scheduler = exact_tables(DDIMScheduler(300, **BETAS, clip_sample=False, prediction_type="v_prediction"))
    source = [image_noise([0, 9], SHAPE)()]
    expected = diffusers_sample(
        scheduler, z_lr, lambda: source.pop() if source else np.zeros_like(z_lr), steps, lambda _: {"eta": 0.0}
    )
    found = sample(network(z_lr), SCHEDULE, image_noise([0, 9], SHAPE), steps=steps, eta=0.0, prediction="v")
    assert_equal(found, expected)


def test_runs_on_torch_tensors() -> None:
    z_lr = z_lr_of(2)
    draw = image_noise([0, 1], SHAPE)
    tensors: Any = torch.from_numpy(z_lr)
    found: Any = sample(network(tensors), SCHEDULE, lambda: torch.from_numpy(draw()), steps=20, eta=1.0)  # type: ignore[misc]
    expected = sample(network(z_lr), SCHEDULE, image_noise([0, 1], SHAPE), steps=20, eta=1.0)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@given(T=st.integers(1, 1000), data=st.data())
@settings(deadline=None)
def test_timesteps_fall_from_the_last_and_never_repeat(T: int, data: st.DataObject) -> None:
    times = timesteps(T, data.draw(st.integers(1, T)))
    assert times[0] == T - 1
    assert times[-1] >= 0
    assert all(a > b for a, b in itertools.pairwise(times))


@pytest.mark.parametrize("steps", [0, -1, 301])
def test_steps_out_of_range(steps: int) -> None:
    with pytest.raises(ValueError, match=f"'steps' must be 1–300, got {steps}"):
        trajectory(SCHEDULE, steps, 1.0)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_out_of_range(eta: float) -> None:
    with pytest.raises(ValueError, match="'eta' must be 0–1"):
        trajectory(SCHEDULE, 10, eta)


@pytest.mark.parametrize("steps", [1, 9, 10, 34])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_leaps_and_single_steps_are_the_same_steps(steps: int, eta: float) -> None:
    z_lr = z_lr_of(0)
    leaps: list[int] = []

    def step_many(z: Array, coefficients: Array, noise: list[Array]) -> Array:
        leaps.append(len(coefficients))
        for row, fresh in zip(coefficients, noise, strict=True):
            step = Step(int(row[0]), *row[1:])
            z = advance(z, step, fake_denoise(z, z_lr, step.t), fresh)
        return z

    found, expected = (
        sample(network(z_lr), SCHEDULE, image_noise([1, 2], SHAPE), steps=steps, eta=eta, step_many=way)
        for way in (step_many, None)
    )
    assert leaps == [UNROLLED_STEPS] * (steps // UNROLLED_STEPS)
    assert_equal(found, expected)
