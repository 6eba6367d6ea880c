"""What a request may hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.request import BadRequest, Options, check_image, check_seed
from pipeline.spec import BEST, MAX_SEED, PAPER


def test_defaults_are_the_presets() -> None:
    rest = {"samples": 1, "output": "sample", "denoiser": "auto"}
    assert Options.of(PAPER) == Options(steps=10, sampler="ddim", start="lr", faithful=False, **rest)  # type: ignore[arg-type]
    assert Options.of(BEST) == Options(
        steps=BEST.diffusion.ddim_steps,
        sampler="ddim",
        start="noise",
        faithful=True,
        **rest,  # type: ignore[arg-type]
    )
    papers_way = Options.of(PAPER, sampler="ddpm", start="noise")
    assert (papers_way.steps, papers_way.sampler, papers_way.start) == (300, "ddpm", "noise")


def test_equal_options_group_together() -> None:
    assert len({Options.of(PAPER, 10), Options.of(PAPER, 10), Options.of(PAPER, 11)}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "'steps' is 0, allowed are 1 to 300"),
        ({"steps": -1}, "'steps' is -1, allowed are 1 to 300"),
        ({"steps": 301}, "'steps' is 301, allowed are 1 to 300"),
        ({"steps": 2.5}, "'steps' is 2.5, allowed are 1 to 300"),
        ({"sampler": "euler"}, "'sampler' is 'euler', allowed are ddpm, ddim"),
        ({"start": "middle"}, "'start' is 'middle', allowed are lr, noise"),
        ({"samples": 0}, "'samples' is 0, allowed are 1 to 16"),
        ({"samples": 17}, "'samples' is 17, allowed are 1 to 16"),
        ({"output": "median"}, "'output' is 'median', allowed are sample, mean"),
        ({"faithful": "no"}, "'faithful' is 'no', allowed are true and false"),
        ({"output": "mean"}, "'output' is 'mean', which needs 'samples' of 2 or more"),
        ({"denoiser": "tpu"}, "'denoiser' is 'tpu', allowed are auto, onnx, trt"),
    ],
)
def test_option_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Options.of(PAPER, **options)


def test_a_preset_without_lr_latent_cannot_start_from_it() -> None:
    with pytest.raises(BadRequest, match="'start' is 'lr', allowed are noise$"):
        Options.of(BEST, start="lr")


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(BadRequest, match=f"'seed' is {seed}, allowed are 0 to {MAX_SEED}"):
        check_seed(seed)


@pytest.mark.parametrize("shape", [(2, 2), (512, 512), (3, 511), (5, 64, 64)])
def test_image_allowed(shape: tuple[int, ...]) -> None:
    check_image(np.full(shape, 0.5, np.float32))
    check_image(np.zeros(shape, np.float32))
    check_image(np.ones(shape, np.float32))


@pytest.mark.parametrize("shape", [(0, 64), (64, 0), (1, 64), (64, 1), (1, 1), (513, 64), (64, 513)])
def test_image_too_small_or_large(shape: tuple[int, int]) -> None:
    with pytest.raises(BadRequest, match=f"'image' is {shape[0]}×{shape[1]} pixels, allowed are 2 to 512 a side"):
        check_image(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_not_finite(value: float) -> None:
    image = np.zeros((8, 8), np.float32)
    image[3, 4] = value
    with pytest.raises(BadRequest, match="NaN or infinite values, allowed are 0 to 1"):
        check_image(image)


@pytest.mark.parametrize("value", [-0.01, 1.01, 255])
def test_image_out_of_range(value: float) -> None:
    image = np.full((8, 8), 0.5, np.float32)
    image[0, 0] = value
    with pytest.raises(BadRequest, match="'image' has values from .* allowed are 0 to 1"):
        check_image(image)
