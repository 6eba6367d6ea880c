"""OpenVINO in this process: usual and unusual shapes, any batch, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.onnx_networks import by_onnxruntime, onnx_networks
from pipeline.openvino_runtime import BATCHES, OpenVINOError, load, parts
from pipeline.parity import radiographs
from pipeline.serve import ROOT
from pipeline.spec import BEST, network_models
from pipeline.superres import generator, upscale

UNET = network_models(BEST)[0]
PATH = ROOT / "model_repository" / "unet_onnx" / "1" / "model.onnx"
USUAL = dict(zip(UNET.input_names, UNET.warmup, strict=True))


@pytest.mark.parametrize("total", range(1, 17))
def test_batches_are_made_up_of_those_that_have_a_network(total: int) -> None:
    found = parts(total, BATCHES)
    assert sum(found) == total
    assert set(found) <= set(BATCHES)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("batch", [1, 2, 4, 7])
@pytest.mark.parametrize("shape", [(32, 32), (8, 24)], ids=["usual", "unusual"])
def test_numbers_are_those_of_onnxruntime(batch: int, shape: tuple[int, int], rng: np.random.Generator) -> None:
    inputs, outputs, run = load(PATH, bf16=False, usual=USUAL)
    assert (inputs, outputs) == (["x", "t"], ["v"])
    feed = {
        "x": rng.standard_normal((batch, 8, *shape), dtype=np.float32),
        "t": rng.integers(0, 300, (batch, 1)).astype(np.float32),
    }
    np.testing.assert_allclose(run(feed)["v"], by_onnxruntime(PATH, UNET)(**feed), atol=2e-4)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("shape", [(64, 64), (40, 48)], ids=["usual", "unusual"])
def test_an_image_is_the_same_alone_and_in_a_batch(steps: int, shape: tuple[int, int]) -> None:
    generate = generator(onnx_networks(ROOT / "model_repository", BEST, "openvino"), BEST, steps=steps)
    (radiograph, _) = radiographs(BEST)
    images = [np.ascontiguousarray(radiograph[: shape[0], : shape[1]]) * np.float32(1 - 0.1 * k) for k in range(5)]
    together = upscale(images, list(range(5)), generate, BEST)
    for seed, image in enumerate(images):
        np.testing.assert_array_equal(upscale([image], [seed], generate, BEST)[0].upscaled, together[seed].upscaled)


def test_results_are_not_overwritten_by_the_next_call(rng: np.random.Generator) -> None:
    _, _, run = load(PATH, bf16=False, usual=USUAL)
    feeds = [
        {"x": rng.standard_normal((1, 8, 32, 32), dtype=np.float32), "t": np.zeros((1, 1), np.float32)} for _ in "ab"
    ]
    first = run(feeds[0])["v"]
    kept = first.copy()
    run(feeds[1])
    np.testing.assert_array_equal(first, kept)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OpenVINOError):
        load(tmp_path / "none.onnx", bf16=True)
