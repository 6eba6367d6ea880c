"""INT8: the same convolutions nearly, whatever the scale of their channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from pipeline import ROOT
from pipeline.export.command import check_graph, select_ranges, write_onnx
from pipeline.export.parity import MAX_DARK, MIN_PSNR, compare_images, radiographs
from pipeline.export.quantize import input_scale, quantize, quantize_weights
from pipeline.method.upscale import fused_generator, upscale
from pipeline.models import onnx_models
from pipeline.networks import eager
from pipeline.networks.weights import load_ranges
from pipeline.presets import BEST
from pipeline.runtimes.onnx import onnxruntime_network
from pipeline.spec import INT8_FILE, Model, Tensor
from tests.conftest import Array

pytestmark = pytest.mark.slow

IN_INT8 = pytest.mark.parametrize("model", [m for m in onnx_models(BEST) if m.name in BEST.int8], ids=lambda m: m.name)


def folder(model: Model) -> Path:
    return ROOT / "model_repository" / model.name / "1"


def run(model: onnx.ModelProto, x: Array) -> Array:
    result: Array = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    return result


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """Two convolutions, named ``0`` and ``2``."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1)).eval()
    x, y = Tensor("x", "FP32", (3, -1, -1)), Tensor("y", "FP32", (2, -1, -1))
    path = tmp_path_factory.mktemp("quantize") / "model.onnx"
    write_onnx(network, Model("layers", "onnxruntime", inputs=(x,), outputs=(y,), warmup=((3, 8, 8),)), path)
    return onnx.load(str(path))


def test_weights_come_back_within_half_a_step(rng: np.random.Generator) -> None:
    weight, reach = rng.standard_normal((4, 3, 3, 3), dtype=np.float32), np.array([0.1, 1, 30], np.float32)
    integers, scale = quantize_weights(weight, reach)
    assert integers.dtype == np.int8
    taken_up = weight * reach[None, :, None, None]
    steps = scale[:, None, None, None]
    assert np.abs(integers * steps - taken_up).max() <= 0.5001 * scale.max()
    assert (np.abs(integers).max(axis=(1, 2, 3)) == 127).all(), "each output has a scale of its own, and uses it"


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-0.3, 1), (0, 0.5), (0.2, 1), (-2, -1), (0, 0)])
def test_integers_hold_the_range_and_zero_exactly(low: float, high: float) -> None:
    scale, zero = input_scale(np.array([low], np.float32), np.array([high], np.float32))
    assert 0 <= zero <= 255
    assert (0 - float(zero)) * scale <= min(low, 0) + scale
    assert (255 - float(zero)) * scale >= max(high, 0) - scale


def test_channels_of_small_values_keep_their_digits(layers: onnx.ModelProto, rng: np.random.Generator) -> None:
    size = np.array([1, 0.05, 1], np.float32)
    x = rng.uniform(-1, 1, (4, 3, 8, 8)).astype(np.float32) * size[:, None, None]
    model = onnx.ModelProto()
    model.CopyFrom(layers)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "0.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) / size[:, None, None], weight.name))
    own, common = (quantize(model, {"0": np.stack([-reach, reach])}) for reach in (size, np.ones(3, np.float32)))
    expected = run(model, x)
    assert np.abs(run(own, x) - expected).max() < 0.3 * np.abs(run(common, x) - expected).max()


def test_the_whole_is_nearly_the_same_and_the_original_untouched(
    layers: onnx.ModelProto, rng: np.random.Generator
) -> None:
    before = layers.SerializeToString()
    x = rng.uniform(-1, 1, (4, 3, 8, 8)).astype(np.float32)
    bounds = {"0": np.array([[-1] * 3, [1] * 3], np.float32), "2": np.array([[-0.3] * 8, [1.5] * 8], np.float32)}
    quantized = quantize(layers, bounds)
    expected = run(layers, x)
    error = np.abs(run(quantized, x) - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.03
    assert layers.SerializeToString() == before
    kinds = [node.op_type for node in quantized.graph.node]
    assert kinds.count("QuantizeLinear") == 2
    assert len(quantized.SerializeToString()) < len(before) + 4000


def test_ranges_of_another_network_are_refused(layers: onnx.ModelProto) -> None:
    with pytest.raises(ValueError, match="the model has no convolution 1, blocks"):
        quantize(layers, {name: np.zeros((2, 3), np.float32) for name in ("blocks", "1")})
    with pytest.raises(ValueError, match="0 has 3 input channels, its ranges have 4"):
        quantize(layers, {"0": np.zeros((2, 4), np.float32)})


@IN_INT8
def test_the_shipped_files_are_those_of_the_shipped_networks(model: Model) -> None:
    system = eager.load(ROOT / "weights" / "best", BEST)
    ranges = load_ranges(ROOT / "weights" / "best", {"vae": system.decoder.vae, "unet": system.unet})
    expected = quantize(onnx.load(str(folder(model) / "model.onnx")), select_ranges(model, ranges))
    assert onnx.load(str(folder(model) / INT8_FILE)) == expected
    check_graph(folder(model) / INT8_FILE, model)


def test_whole_images_pass_the_gate() -> None:
    model = next(m for m in onnx_models(BEST) if m.name == "superres_onnx")
    exact, int8 = (onnxruntime_network(folder(model) / name, model) for name in ("model.onnx", INT8_FILE))
    for image in radiographs(BEST):
        found, reference = (upscale([image], [3], fused_generator(run, BEST), BEST)[0] for run in (int8, exact))
        db, dark = compare_images(found.upscaled, reference.upscaled)
        assert MIN_PSNR < db < 90, "nearly, and not by chance the same file"
        assert dark < MAX_DARK
        assert found.lr_error < 0.01, "and faithful"


def test_a_weight_that_serves_two_nodes_is_refused(layers: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(layers)
    twice = model.graph.node.add()
    twice.CopyFrom(next(node for node in model.graph.node if node.op_type == "Conv"))
    twice.output[0] = "again"
    with pytest.raises(ValueError, match="weight"):
        quantize(model, {})
