"""The fused models: the same numbers as the calls that they replace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline import ROOT
from pipeline.method.options import Options
from pipeline.method.sampler import ETA, image_noise, rows, sample, trajectory
from pipeline.method.schedule import make_schedule
from pipeline.method.upscale import Networks, generator, upscale
from pipeline.networks import eager
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.fused import Denoise, Fused
from pipeline.networks.unet import UNet
from pipeline.presets import BEST, PAPER
from pipeline.spec import UNROLLED_STEPS
from tests.conftest import Array

SCHEDULE = make_schedule(PAPER.diffusion)


@pytest.mark.parametrize("eta", ETA.values(), ids=ETA)
@torch.inference_mode()
def test_denoise_is_ten_steps_of_the_sampler(eta: float) -> None:
    torch.manual_seed(0)
    unet = UNet(PAPER.unet).eval()
    condition = torch.randn(2, 4, 16, 16)
    draw = image_noise([0, 1], (4, 16, 16))
    found = sample(
        lambda z, t: unet(torch.cat([z, condition], 1), torch.full((2, 1), float(t))),
        SCHEDULE,
        lambda: torch.from_numpy(draw()),
        steps=UNROLLED_STEPS,
        eta=eta,
    )
    path = trajectory(SCHEDULE, UNROLLED_STEPS, eta)
    draw = image_noise([0, 1], (4, 16, 16))
    start = torch.from_numpy(draw())
    noise = [torch.from_numpy(draw()) if step.sigma > 0 else torch.zeros_like(start) for step in path]
    fused = Denoise(unet)(start, condition, torch.from_numpy(rows(path)).expand(2, -1, -1), torch.stack(noise, 1))
    torch.testing.assert_close(fused, found, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_images_of_a_batch_may_be_at_different_timesteps() -> None:
    torch.manual_seed(0)
    unet = UNet(PAPER.unet).eval()
    z, condition, noise = (
        torch.randn(2, 4, 16, 16),
        torch.randn(2, 4, 16, 16),
        torch.randn(2, UNROLLED_STEPS, 4, 16, 16),
    )
    path = rows(trajectory(SCHEDULE, 300, 1.0))
    coefficients = torch.from_numpy(np.stack([path[:UNROLLED_STEPS], path[100 : 100 + UNROLLED_STEPS]]))
    together = Denoise(unet)(z, condition, coefficients, noise)
    alone = [Denoise(unet)(*(a[i : i + 1] for a in (z, condition, coefficients, noise))) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def best() -> eager.Eager:
    return eager.load(ROOT / "weights" / "best", BEST)


def whole_of(best: eager.Eager) -> Networks:
    """Networks of which only the fused one may be called."""

    def refuse(*_: Array) -> Any:
        raise AssertionError("separate network")

    vae = best.decoder.vae
    assert isinstance(vae, DetailVAE)
    network = Fused(best.unet, vae)

    @torch.inference_mode()
    def fused(**inputs: Array) -> tuple[Array, ...]:
        outputs = network(*(torch.from_numpy(inputs[n]) for n in ("image", "noise", "coefficients")))
        return tuple(output.numpy() for output in outputs)

    return Networks(refuse, refuse, refuse, refuse, fused)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (17, 40)])
def test_the_whole_is_the_way_of_separate_calls(best: eager.Eager, height: int, width: int) -> None:
    image = np.random.default_rng(0).random((height, width), dtype=np.float32)
    found, expected = (
        upscale([image, image], [3, 4], generate, BEST, Options.of(BEST, samples=2))
        for generate in (generator(whole_of(best), BEST), best.generator())
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.upscaled, b.upscaled, atol=1e-4)
        assert a.spread is not None and b.spread is not None
        np.testing.assert_allclose(a.spread, b.spread, atol=1e-3)
        assert a.history.reduction == b.history.reduction
        assert a.expected_error == pytest.approx(b.expected_error, rel=1e-3)


@pytest.mark.parametrize("options", [{"steps": 4}, {"sampler": "ddpm"}], ids=str)
def test_other_options_than_the_presets_own_take_separate_calls(best: eager.Eager, options: dict[str, Any]) -> None:
    generate = generator(whole_of(best), BEST, Options.of(BEST, **options))
    with pytest.raises(AssertionError, match="^separate network$"):
        upscale([np.zeros((16, 16), np.float32)], [0], generate, BEST)
