"""OpenVINO in this process: usual and unusual shapes, any batch, the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import ROOT
from pipeline.export.parity import radiographs
from pipeline.method.options import Options
from pipeline.method.upscale import Networks, generator, upscale
from pipeline.models import onnx_models
from pipeline.presets import BEST
from pipeline.runtimes.onnx import onnx_networks, onnxruntime_network
from pipeline.runtimes.openvino import Network, OpenVINOError, load
from pipeline.serving import processes

pytestmark = pytest.mark.slow

Loaded = tuple[list[str], list[str], Callable[[dict[str, Any]], list[Any]]]
"""Names of inputs and outputs, and what runs the network."""

UNET = onnx_models(BEST).denoiser
PATH = ROOT / "model_repository" / "unet_onnx" / "1" / "model.onnx"
USUAL = dict(zip(UNET.input_names, UNET.warmup, strict=True))


@pytest.fixture(scope="module")
def unet() -> Loaded:
    return load(PATH, bf16=False, usual=USUAL)


@pytest.fixture(scope="module")
def networks() -> Networks:
    return onnx_networks(ROOT / "model_repository", BEST, "openvino")


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(32, 32), (8, 24)], ids=["usual", "unusual"])
def test_numbers_are_those_of_onnxruntime(
    unet: Loaded, batch: int, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    inputs, outputs, run = unet
    assert (inputs, outputs) == (["x", "t"], ["v"])
    feed = {
        "x": rng.standard_normal((batch, 8, *shape), dtype=np.float32),
        "t": rng.integers(0, 300, (batch, 1)).astype(np.float32),
    }
    np.testing.assert_allclose(run(feed)[0], onnxruntime_network(PATH, UNET)(**feed)[0], atol=2e-4)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("shape", [(64, 64), (40, 48)], ids=["usual", "unusual"])
def test_an_image_is_the_same_alone_and_in_a_batch(networks: Networks, steps: int, shape: tuple[int, int]) -> None:
    generate = generator(networks, BEST, Options.of(BEST, steps=steps))
    (radiograph, _) = radiographs(BEST)
    images = [np.ascontiguousarray(radiograph[: shape[0], : shape[1]]) * np.float32(1 - 0.1 * k) for k in range(5)]
    together = upscale(images, list(range(5)), generate, BEST)
    for seed, image in enumerate(images):
        alone = upscale([image], [seed], generate, BEST)[0].upscaled
        # on Zen 4 to the bit; other processors' kernels may round otherwise on one core than on all
        np.testing.assert_allclose(alone, together[seed].upscaled, atol=0.4 / 255)


def test_signals_can_be_handled_after_networks_are_freed() -> None:
    code = (
        "import signal; from pathlib import Path; from pipeline.runtimes.openvino import load; "
        f"first, second = (load(Path({str(PATH)!r}), bf16=False) for _ in range(2)); del first; del second; "
        "signal.signal(signal.SIGTERM, lambda *_: print('handled')); signal.raise_signal(signal.SIGTERM)"
    )
    result = subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr


def test_results_are_not_overwritten_by_the_next_call(rng: np.random.Generator) -> None:
    _, _, run = load(PATH, bf16=False, usual=USUAL)
    feeds = [
        {"x": rng.standard_normal((1, 8, 32, 32), dtype=np.float32), "t": np.zeros((1, 1), np.float32)} for _ in "ab"
    ]
    first = run(feeds[0])[0]
    kept = first.copy()
    run(feeds[1])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("shape", [(32, 32), (8, 24)], ids=["usual", "unusual"])
def test_a_shape_that_cannot_run_is_an_error_and_the_next_call_works(
    shape: tuple[int, int], rng: np.random.Generator
) -> None:
    _, _, run = load(PATH, bf16=False, usual=USUAL)
    wrong = {"x": np.zeros((5, 8, 9, 9), np.float32), "t": np.zeros((5, 1), np.float32)}
    right = {"x": rng.standard_normal((5, 8, *shape), dtype=np.float32), "t": np.zeros((5, 1), np.float32)}
    expected = run(right)[0]
    for batch in (5, 1):
        with pytest.raises(RuntimeError):
            run({name: array[:batch] for name, array in wrong.items()})
    for batch in (5, 1, 1):
        feed = {name: array[:batch] for name, array in right.items()}
        np.testing.assert_array_equal(run(feed)[0], expected[:batch])


def test_a_failed_recompilation_is_its_own_error_and_the_next_call_compiles_again(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    _, _, run = load(PATH, bf16=False, usual=USUAL)
    right = {"x": rng.standard_normal((5, 8, 8, 24), dtype=np.float32), "t": np.zeros((5, 1), np.float32)}
    wrong = {"x": np.zeros((5, 8, 9, 9), np.float32), "t": np.zeros((5, 1), np.float32)}
    expected = run(right)[0]
    one = {name: array[:1] for name, array in right.items()}
    for broken in (wrong, {name: array[:1] for name, array in wrong.items()}):
        with pytest.raises(RuntimeError):
            run(broken)

    def fail(_network: Network, _hint: str) -> None:
        raise MemoryError("compile")

    with monkeypatch.context() as patch:
        patch.setattr(Network, "_compiled", fail)
        for feed in (right, one):
            with pytest.raises(MemoryError, match="^compile$"):
                run(feed)
    np.testing.assert_array_equal(run(right)[0], expected)
    np.testing.assert_array_equal(run(one)[0], expected[:1])


def test_without_a_usual_shape_the_model_runs_as_it_is_called(rng: np.random.Generator) -> None:
    _, _, run = load(PATH, bf16=False)
    feed = {"x": rng.standard_normal((3, 8, 16, 16), dtype=np.float32), "t": np.ones((3, 1), np.float32)}
    np.testing.assert_allclose(run(feed)[0], onnxruntime_network(PATH, UNET)(**feed)[0], atol=2e-4)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OpenVINOError):
        load(tmp_path / "none.onnx", bf16=True)


def test_memory_of_long_inferences_is_given_back_and_results_stay() -> None:
    code = f"""
from pathlib import Path
import numpy as np
from pipeline.runtimes import openvino

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1000

_, _, run = openvino.load(Path({str(PATH)!r}), bf16=False)
rng = np.random.default_rng(0)
feed = {{"x": rng.standard_normal((1, 8, 256, 256), dtype=np.float32), "t": np.zeros((1, 1), np.float32)}}
openvino.LONG = float("inf")
kept = run(feed)[0]
before = resident()
openvino.LONG = 0.0
found = run(feed)[0]
assert before - resident() > 50, (before, resident())
np.testing.assert_array_equal(found, kept)
np.testing.assert_array_equal(run(feed)[0], kept)
np.testing.assert_array_equal(found, kept)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **processes.MALLOC}
    )
    assert result.returncode == 0, result.stderr
