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
    with pytest.raises(InvalidRequest, match="'pixel_mm' is .*, allowed are 0.01 to 50 mm from pixel to pixel"):
        check_pixel_mm(value)


def test_a_size_that_pixels_can_have() -> None:
    assert [check_pixel_mm(mm) for mm in (0.01, np.float32(0.5), 50)] == [0.01, 0.5, 50.0]


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
        ({"steps": True}, "'steps' is True, allowed are 1 to 300"),
        ({"steps": np.True_}, "'steps' is True, allowed are 1 to 300"),
        ({"steps": np.array([3, 4])}, "'steps' is array.*, allowed are 1 to 300"),
        ({"sampler": b"ddim"}, "'sampler' is b'ddim', allowed are ddpm, ddim"),
        ({"sampler": ["ddim"]}, "'sampler' is .*, allowed are ddpm, ddim"),
        ({"sampler": "d\nd"}, r"'sampler' is 'd\\nd', allowed"),
        ({"sampler": "x" * 1000}, "'sampler' is '[x]{59}…, allowed"),
        ({"faithful": 0}, "'faithful' is 0, allowed are true and false"),
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
    with pytest.raises(InvalidRequest, match="'start' is 'lr', allowed are noise$"):
        Options.of(BEST, start="lr")


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, np.uint64(MAX_SEED + 1), True, 1.0, "1", None])
def test_seed_out_of_range(seed: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"'seed' is '?{seed}'?, allowed are 0 to {MAX_SEED}"):
        check_seed(seed)


@pytest.mark.parametrize("shape", [(2, 2), (512, 512), (3, 511), (5, 64, 64)])
def test_image_allowed(shape: tuple[int, ...]) -> None:
    check_image(np.full(shape, 0.5, np.float32))
    check_image(np.zeros(shape, np.float32))
    check_image(np.ones(shape, np.float32))


@pytest.mark.parametrize("shape", [(0, 64), (64, 0), (1, 64), (64, 1), (1, 1), (513, 64), (64, 513)])
def test_image_too_small_or_large(shape: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest, match=f"'image' is {shape[0]}×{shape[1]} pixels, allowed are 2 to 512 a side"):
        check_image(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_not_finite(value: float) -> None:
    image = np.zeros((8, 8), np.float32)
    image[3, 4] = value
    with pytest.raises(InvalidRequest, match="NaN or infinite values, allowed are 0 to 1"):
        check_image(image)


@pytest.mark.parametrize("value", [-0.01, 1.01, 255])
def test_image_out_of_range(value: float) -> None:
    image = np.full((8, 8), 0.5, np.float32)
    image[0, 0] = value
    with pytest.raises(InvalidRequest, match="'image' has values from .* allowed are 0 to 1"):
        check_image(image)


@pytest.mark.parametrize("value", [0.5, 3, np.float32(2), np.int64(7), 1e308, float("inf")])
def test_seconds_allowed(value: float) -> None:
    assert check_seconds("wait", value, zero=True) == value
    assert check_seconds("wait", value, zero=False) == value


def test_seconds_beyond_any_float_are_infinite() -> None:
    assert check_seconds("wait", 10**400, zero=True) == float("inf")


@pytest.mark.parametrize("value", [-1, float("nan"), float("-inf"), True, "5", None, 1j, [1]])
def test_seconds_not_allowed(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="'wait' is .*, allowed are 0 or more seconds; inf is no limit"):
        check_seconds("wait", value, zero=True)


def test_whether_no_seconds_are_allowed() -> None:
    assert check_seconds("wait", 0, zero=True) == 0
    with pytest.raises(InvalidRequest, match="'timeout' is 0, allowed are more than 0 seconds"):
        check_seconds("timeout", 0, zero=False)


class Broken:
    def __array__(self, *_: Any) -> Any:
        raise RuntimeError("on a device")


def test_what_makes_no_array_is_named() -> None:
    with pytest.raises(InvalidRequest, match="'image' is a Broken that makes no array"):
        gray_image(Broken())
