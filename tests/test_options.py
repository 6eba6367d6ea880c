"""What a request may hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.method.options import (
    InvalidRequest,
    Options,
    check_image,
    check_pixel_mm,
    check_seconds,
    check_seed,
    gray_image,
)
from pipeline.presets import BEST, PAPER
from pipeline.spec import MAX_SEED


def test_defaults_are_the_presets() -> None:
    rest = {"samples": 1, "output": "sample", "degradation": "auto", "denoiser": "auto"}
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


@pytest.mark.parametrize("value", [0, -0.1, 50.1, np.nan, np.inf, True, "1", None, [1.0]])
def test_a_size_that_pixels_cannot_have(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="'pixel_mm' must be 0.01–50 .*, got"):
        check_pixel_mm(value)


def test_a_size_that_pixels_can_have() -> None:
    assert [check_pixel_mm(mm) for mm in (0.01, np.float32(0.5), 50)] == [0.01, 0.5, 50.0]


def test_equal_options_group_together() -> None:
    assert len({Options.of(PAPER, 10), Options.of(PAPER, 10), Options.of(PAPER, 11)}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "'steps' must be 1–300, got 0"),
        ({"steps": -1}, "'steps' must be 1–300, got -1"),
        ({"steps": 301}, "'steps' must be 1–300, got 301"),
        ({"steps": 2.5}, "'steps' must be 1–300, got 2.5"),
        ({"sampler": "euler"}, "'sampler' must be one of ddpm, ddim, got 'euler'"),
        ({"start": "middle"}, "'start' must be one of lr, noise, got 'middle'"),
        ({"samples": 0}, "'samples' must be 1–16, got 0"),
        ({"samples": 17}, "'samples' must be 1–16, got 17"),
        ({"output": "median"}, "'output' must be one of sample, mean, got 'median'"),
        ({"faithful": "no"}, "'faithful' must be true or false, got 'no'"),
        ({"output": "mean"}, "'output' is 'mean', which needs 'samples' of 2 or more"),
        ({"denoiser": "tpu"}, "'denoiser' must be one of auto, onnx, trt, got 'tpu'"),
        ({"steps": True}, "'steps' must be 1–300, got True"),
        ({"steps": np.True_}, "'steps' must be 1–300, got True"),
        ({"steps": np.array([3, 4])}, "'steps' must be 1–300, got array.*"),
        ({"sampler": b"ddim"}, "'sampler' must be one of ddpm, ddim, got b'ddim'"),
        ({"sampler": ["ddim"]}, "'sampler' must be one of ddpm, ddim, got .*"),
        ({"sampler": "d\nd"}, r"'sampler' must be one of .*, got 'd\\nd'"),
        ({"sampler": "x" * 1000}, "'sampler' must be one of .*, got '[x]{59}…"),
        ({"faithful": 0}, "'faithful' must be true or false, got 0"),
    ],
)
def test_option_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Options.of(PAPER, **options)


def test_options_are_pythons_own_values() -> None:
    class Text(str):
        __slots__ = ()

    found = Options.of(PAPER, np.int32(3), Text("ddpm"), samples=np.uint8(2), faithful=np.bool_(True))  # type: ignore[arg-type]
    assert found == Options.of(PAPER, 3, "ddpm", samples=2, faithful=True)
    assert [type(value) for value in (found.steps, found.sampler, found.samples, found.faithful)] == [
        int,
        str,
        int,
        bool,
    ]
    assert type(check_seed(np.int64(5))) is int


def test_a_preset_without_lr_latent_cannot_start_from_it() -> None:
    with pytest.raises(InvalidRequest, match="'start' must be one of noise, got 'lr'$"):
        Options.of(BEST, start="lr")


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, np.uint64(MAX_SEED + 1), True, 1.0, "1", None])
def test_seed_out_of_range(seed: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"'seed' must be 0–{MAX_SEED}, got '?{seed}'?"):
        check_seed(seed)


@pytest.mark.parametrize("shape", [(2, 2), (512, 512), (3, 511), (5, 64, 64)])
def test_image_allowed(shape: tuple[int, ...]) -> None:
    check_image(np.full(shape, 0.5, np.float32))
    check_image(np.zeros(shape, np.float32))
    check_image(np.ones(shape, np.float32))


@pytest.mark.parametrize("shape", [(0, 64), (64, 0), (1, 64), (64, 1), (1, 1), (513, 64), (64, 513)])
def test_image_too_small_or_large(shape: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest, match=f"'image' must be 2–512 pixels per side, got {shape[0]}×{shape[1]}"):
        check_image(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_not_finite(value: float) -> None:
    image = np.zeros((8, 8), np.float32)
    image[3, 4] = value
    with pytest.raises(InvalidRequest, match="'image' must be 0–1, got NaN or infinite values"):
        check_image(image)


@pytest.mark.parametrize("value", [-0.01, 1.01, 255])
def test_image_out_of_range(value: float) -> None:
    image = np.full((8, 8), 0.5, np.float32)
    image[0, 0] = value
    with pytest.raises(InvalidRequest, match="'image' must be 0–1, got values from"):
        check_image(image)


@pytest.mark.parametrize("value", [0.5, 3, np.float32(2), np.int64(7), 1e308, float("inf")])
def test_seconds_allowed(value: float) -> None:
    assert check_seconds("wait", value, zero=True) == value
    assert check_seconds("wait", value, zero=False) == value


def test_seconds_beyond_any_float_are_infinite() -> None:
    assert check_seconds("wait", 10**400, zero=True) == float("inf")


@pytest.mark.parametrize("value", [-1, float("nan"), float("-inf"), True, "5", None, 1j, [1]])
def test_seconds_not_allowed(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="'wait' must be 0 or more seconds .*, got"):
        check_seconds("wait", value, zero=True)


def test_whether_no_seconds_are_allowed() -> None:
    assert check_seconds("wait", 0, zero=True) == 0
    with pytest.raises(InvalidRequest, match="'timeout' must be more than 0 seconds .*, got 0"):
        check_seconds("timeout", 0, zero=False)


class Broken:
    def __array__(self, *_: Any) -> Any:
        raise RuntimeError("on a device")


def test_what_makes_no_array_is_named() -> None:
    with pytest.raises(InvalidRequest, match="'image' must be floating point .*, got a Broken"):
        gray_image(Broken())
