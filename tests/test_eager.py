"""The reference pipeline in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.method.images import from_integers, psnr, upsample
from pipeline.method.options import Options
from pipeline.method.upscale import generator, upscale
from pipeline.networks import eager
from pipeline.presets import BEST, DEFAULT, PAPER
from pipeline.runtimes.onnx import onnx_networks
from train.degrade import DEGRADATION_ROWS, Gray, degrade

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pipeline() -> eager.Eager:
    return eager.load(ROOT / "weights" / DEFAULT.name, DEFAULT)


def test_upscales_a_batch(pipeline: eager.Eager, rng: np.random.Generator) -> None:
    images = [rng.random((20, 33), dtype=np.float32) for _ in range(2)]
    generate = pipeline.generator(Options.of(DEFAULT, steps=3))
    results = upscale(images, [0, 1], generate, DEFAULT)
    assert [r.upscaled.shape for r in results] == [(80, 132)] * 2
    (alone,) = upscale(images[1:], [1], generate, DEFAULT)
    np.testing.assert_allclose(alone.upscaled, results[1].upscaled, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 300), ("ddim", 25)])
def test_the_shipped_onnx_files_are_the_shipped_weights(pipeline: eager.Eager, sampler: str, steps: int) -> None:
    y, x = np.mgrid[0:64, 0:64].astype(np.float32) / 64
    image = 0.5 + 0.4 * np.sin(6 * x) * np.cos(4 * y * y)
    options: dict[str, Any] = {"steps": steps, "sampler": sampler}
    networks = onnx_networks(ROOT / "model_repository", DEFAULT)
    (served,) = upscale([image], [3], generator(networks, DEFAULT, Options.of(DEFAULT, **options)), DEFAULT)
    (reference,) = upscale([image], [3], pipeline.generator(Options.of(DEFAULT, **options)), DEFAULT)
    assert psnr(served.upscaled, reference.upscaled) > 50


def flat(_rng: np.random.Generator) -> Gray:
    return np.full((512, 512), 235, np.uint8)


def handwriting(rng: np.random.Generator) -> Gray:
    page = np.full((512, 512), 240, np.uint8)
    for line in range(40, 512, 45):
        points = np.cumsum(np.stack([rng.uniform(3, 9, 70), rng.normal(0, 7, 70)], axis=1), axis=0)
        points[:, 1] = line + 12 * np.sin(points[:, 0] / 7) + rng.normal(0, 3, 70)
        cv2.polylines(page, [points.astype(np.int32)], False, 40, 2, cv2.LINE_AA)
    return page


def chessboard(_rng: np.random.Generator) -> Gray:
    y, x = np.mgrid[:512, :512] // 7
    return np.where((x + y) % 2, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("page", [flat, handwriting, chessboard])
@pytest.mark.parametrize("degradation", ["cubic", "area"])
def test_what_is_no_radiograph_is_not_below_bicubic_or_it_is_told(
    pipeline: eager.Eager, page: Callable[[np.random.Generator], Gray], degradation: str, rng: np.random.Generator
) -> None:
    lr, hr = (from_integers(image) for image in degrade(page(rng), DEGRADATION_ROWS[degradation], rng))
    (result,) = upscale([lr], [0], pipeline.generator(), DEFAULT)
    ours, bicubic = (psnr(image, hr) for image in (result.upscaled, upsample(lr)))
    expected, usual = result.expected_error, DEFAULT.band.usual
    assert expected is not None and usual is not None
    # both are infinite of flat paper
    assert ours >= bicubic - 0.3 or expected > usual or result.history.reduction is None


def test_another_presets_onnx_files_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'.*\.onnx'.*inputs .*, got "):
        onnx_networks(ROOT / "model_repository", PAPER if DEFAULT == BEST else BEST)


@pytest.mark.slow
def test_another_autoencoder(tmp_path: Path, rng: np.random.Generator) -> None:
    from tests.test_vae import tiny_vae

    tiny_vae().save_pretrained(tmp_path)
    other = eager.load(ROOT / "weights" / "paper", PAPER, vae=tmp_path)
    image = rng.random((16, 16), dtype=np.float32)
    (result,) = upscale([image], [0], other.generator(Options.of(PAPER, steps=2)), PAPER)
    assert result.upscaled.shape == (64, 64)
    assert torch.is_grad_enabled()


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no AutoencoderKL at"):
        eager.load(tmp_path, PAPER)
    with pytest.raises(ValueError, match=r"cannot read '.*vae\.safetensors'"):
        eager.load(tmp_path, BEST)
