"""The shipped model repository in a real server: results, batching, determinism, and bad input of every kind."""

from __future__ import annotations

import http.client
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
import tritonclient.http
from google.protobuf import text_format
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from pipeline import ROOT, triton_config
from pipeline.hashes import write_hashes
from pipeline.method.images import psnr
from pipeline.method.options import Options
from pipeline.method.reduction import reduce
from pipeline.method.upscale import generator, upscale
from pipeline.models import fused_model, superres_model
from pipeline.presets import DEFAULT
from pipeline.runtimes.onnx import onnx_networks
from pipeline.spec import REDUCTIONS
from tests.conftest import Array, RunningServer, StartServer

REPOSITORY = ROOT / "model_repository"
SIZES = [(64, 64), (65, 97), (128, 96), (16, 16)]


def tensor(name: str, array: NDArray[Any]) -> triton.InferInput:
    result = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    result.set_data_from_numpy(array)
    return result


DTYPES = {"seed": np.int64, "steps": np.int32, "samples": np.int32, "faithful": np.bool_, "pixel_mm": np.float32}
"""Of options that are no strings."""


def answer(client: triton.InferenceServerClient, image: NDArray[Any], **options: Any) -> dict[str, Array]:
    """Every output for ``image`` [B, H, W], sent as it is, with options [B] of the dtypes that the model names."""
    inputs = [tensor("image", image)]
    for name, values in options.items():
        inputs.append(tensor(name, np.array(values, DTYPES.get(name, np.object_)).reshape(-1, 1)))
    result = client.infer("superres", inputs)
    return {tensor.name: result.as_numpy(tensor.name) for tensor in superres_model(DEFAULT).outputs}


def request(client: triton.InferenceServerClient, image: NDArray[Any], **options: Any) -> Array:
    return answer(client, image, **options)["upscaled"]


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url("grpc")) as client:
        yield client


def random_images(height: int, width: int, count: int = 1) -> Array:
    return np.random.default_rng(height + width).random((count, height, width), dtype=np.float32)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size_gives_what_the_same_files_give_in_one_process(
    client: triton.InferenceServerClient, height: int, width: int
) -> None:
    images = random_images(height, width)
    served = request(client, images, seed=[5], steps=[12])
    assert served.shape == (1, 4 * height, 4 * width)
    assert served.dtype == np.float32
    generate = generator(onnx_networks(REPOSITORY, DEFAULT), DEFAULT, Options.of(DEFAULT, steps=12))
    (local,) = upscale(list(images), [5], generate, DEFAULT)
    assert psnr(served[0], local.upscaled) > 50


def test_samples_mean_spread_and_lr_error_are_those_of_one_process(client: triton.InferenceServerClient) -> None:
    images = random_images(20, 24, count=2)
    served = answer(client, images, seed=[5, 6], samples=[3, 3], output=["mean"] * 2, faithful=[True] * 2)
    generate = generator(onnx_networks(REPOSITORY, DEFAULT), DEFAULT)
    local = upscale(
        list(images), [5, 6], generate, DEFAULT, Options.of(DEFAULT, samples=3, output="mean", faithful=True)
    )
    for i, result in enumerate(local):
        assert result.spread is not None
        np.testing.assert_allclose(served["upscaled"][i], result.upscaled, atol=1e-3)
        np.testing.assert_allclose(served["spread"][i], result.spread, atol=1e-3)
        assert served["lr_error"][i] == pytest.approx(result.lr_error, abs=1e-3)


def smooth_images(height: int, width: int) -> Array:
    """What has no noise."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / 16
    return (0.5 + 0.2 * np.sin(3 * x) * np.cos(2 * y))[None]


def test_one_sample_has_a_spread_and_an_expected_error(client: triton.InferenceServerClient) -> None:
    smooth, noisy = (answer(client, images) for images in (smooth_images(32, 32), random_images(32, 32)))
    for found in (smooth, noisy):
        assert found["spread"].shape == found["upscaled"].shape
        assert found["spread"].min() > 0
    assert smooth["spread"].mean() < noisy["spread"].mean()
    assert 0 < smooth["expected_error"][0, 0] < noisy["expected_error"][0, 0]


def test_faithful_results_reduce_to_the_image(client: triton.InferenceServerClient) -> None:
    images = smooth_images(32, 32)
    told = {"degradation": ["cubic"]}  # an image that was not reduced at all tells nothing
    errors = {choice: answer(client, images, faithful=[choice], **told)["lr_error"][0, 0] for choice in (True, False)}
    assert errors[True] < 1 / 255
    assert errors[True] < errors[False]


def test_the_reduction_is_found_or_told_and_noise_is_seen(client: triton.InferenceServerClient) -> None:
    images = smooth_images(32, 32)
    assert answer(client, images)["found"][0, 0].decode() in (*REDUCTIONS, "other")
    told = answer(client, images, degradation=["lanczos"])
    assert told["found"][0, 0] == b"lanczos"
    assert told["lr_error"][0, 0] < 1 / 255
    assert np.abs(reduce(told["upscaled"][0], "lanczos") - images[0]).max() < 1 / 255
    noisy = images + 8 / 255 * np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
    assert answer(client, noisy)["noise"][0, 0] > 4 / 255 > answer(client, images)["noise"][0, 0]


def test_pixels_of_a_size_not_trained_on_widen_the_band(client: triton.InferenceServerClient) -> None:
    images = smooth_images(32, 32)
    usual, strange = (answer(client, images, pixel_mm=[mm]) for mm in (3.0, 20.0))
    np.testing.assert_array_equal(usual["upscaled"], strange["upscaled"])
    np.testing.assert_allclose(strange["spread"], DEFAULT.band.strange * usual["spread"], rtol=1e-5)


@pytest.mark.parametrize("mm", [0.0, -1.0, 1e6, np.nan])
def test_a_size_that_pixels_cannot_have_is_refused(client: triton.InferenceServerClient, mm: float) -> None:
    with pytest.raises(InferenceServerException, match="'pixel_mm' must be 0.01–50 .*, got"):
        request(client, smooth_images(16, 16), pixel_mm=[mm])


def test_what_the_reduction_cannot_be_is_refused(client: triton.InferenceServerClient) -> None:
    with pytest.raises(
        InferenceServerException, match="'degradation' must be one of auto, cubic, area, .*, got 'blur'"
    ):
        request(client, smooth_images(16, 16), degradation=["blur"])


def test_defaults_are_the_presets(client: triton.InferenceServerClient) -> None:
    images = random_images(16, 16)
    d = DEFAULT.diffusion
    explicit = request(
        client,
        images,
        seed=[0],
        steps=[d.ddim_steps],
        sampler=["ddim"],
        start=[d.start],
        samples=[1],
        output=["sample"],
        faithful=[DEFAULT.faithful],
        degradation=["auto"],
        denoiser=["auto"],
    )
    np.testing.assert_array_equal(request(client, images), explicit)


def test_same_input_gives_the_same_bytes_and_options_matter(client: triton.InferenceServerClient) -> None:
    images = random_images(32, 32)
    base = request(client, images, seed=[1], steps=[8], sampler=["ddpm"])
    np.testing.assert_array_equal(request(client, images, seed=[1], steps=[8], sampler=["ddpm"]), base)
    for other in (
        request(client, images, seed=[2], steps=[8], sampler=["ddpm"]),
        request(client, images, seed=[1], steps=[9], sampler=["ddpm"]),
        request(client, images, seed=[1], steps=[8], sampler=["ddim"]),
        request(client, images, seed=[1], steps=[8], sampler=["ddpm"], faithful=[False]),
        request(client, images, seed=[1], steps=[8], sampler=["ddpm"], samples=[2], output=["mean"]),
    ):
        assert not np.array_equal(other, base)


def test_a_batch_of_different_options_is_answered_in_order(client: triton.InferenceServerClient) -> None:
    images = random_images(16, 24, count=4)
    seeds, steps, samplers = [7, 7, 8, 9], [5, 3, 5, 3], ["ddpm", "ddim", "ddpm", "ddim"]
    together = request(client, images, seed=seeds, steps=steps, sampler=samplers)
    for i in range(4):
        alone = request(client, images[i : i + 1], seed=[seeds[i]], steps=[steps[i]], sampler=[samplers[i]])
        np.testing.assert_allclose(together[i], alone[0], atol=1e-4)


def test_concurrent_requests_are_each_answered_with_their_own_image(client: triton.InferenceServerClient) -> None:
    jobs = [(random_images(*SIZES[i % 2]), i) for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(lambda job: request(client, job[0], seed=[job[1]], steps=[6]), jobs))
    for (images, seed), result in zip(jobs, results, strict=True):
        np.testing.assert_allclose(result, request(client, images, seed=[seed], steps=[6]), atol=1e-4)


def counts(client: triton.InferenceServerClient, model: str, inferences: int = 0) -> tuple[int, int]:
    """(inferences, executions), at rest: a batch is counted after its answers. At least so many, if they come."""
    deadline, before = time.monotonic() + 10, (-1, -1)
    while True:
        (stats,) = client.get_inference_statistics(model).model_stats
        now = (stats.inference_count, stats.execution_count)
        if (now == before and now[0] >= inferences) or time.monotonic() > deadline:
            return now
        before = now
        time.sleep(0.3)


def test_separate_requests_run_together(client: triton.InferenceServerClient) -> None:
    inferences, executions = counts(client, "superres")
    images = random_images(64, 64)
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda seed: request(client, images, seed=[seed], steps=[60]), range(10)))
    after = counts(client, "superres", inferences + 10)
    assert after[0] - inferences == 10
    assert after[1] - executions < 10


def test_requests_are_batched_in_the_unet(client: triton.InferenceServerClient) -> None:
    inferences, executions = counts(client, "unet_onnx")
    request(client, random_images(64, 64, count=8), seed=list(range(8)), steps=[10] * 8)
    after = counts(client, "unet_onnx", inferences + 80)
    assert (after[0] - inferences, after[1] - executions) == (80, 10)


IMAGE = random_images(16, 16)
BAD = [
    (lambda a: a[:, :1], {}, "'image' must be 2–512 pixels per side, got 1×16"),
    (lambda a: a[:, :1, :1], {}, "'image' must be 2–512 pixels per side, got 1×1"),
    (lambda _: np.zeros((1, 513, 16), np.float32), {}, "'image' must be 2–512 pixels per side, got 513×16"),
    (lambda a: np.where(a > 0.9, np.nan, a), {}, "'image' must be 0–1, got NaN or infinite values"),
    (lambda a: np.where(a > 0.9, np.inf, a), {}, "'image' must be 0–1, got NaN or infinite values"),
    (lambda a: a * 255, {}, "'image' must be 0–1, got values from"),
    (lambda a: a - 0.5, {}, "'image' must be 0–1, got values from"),
    (lambda a: a[0], {}, "unexpected shape for input 'image'"),
    (lambda a: a[None], {}, "unexpected shape for input 'image'"),
    (lambda a: np.repeat(a, 17, axis=0), {}, "batch-size must be <= 16"),
    (lambda a: (a * 255).astype(np.uint8), {}, "data-type is 'UINT8', but model 'superres' expects 'FP32'"),
    (lambda a: a.astype(np.float64), {}, "data-type is 'FP64', but model 'superres' expects 'FP32'"),
    (lambda a: a, {"steps": [0]}, "'steps' must be 1–300, got 0"),
    (lambda a: a, {"steps": [301]}, "'steps' must be 1–300, got 301"),
    (lambda a: a, {"steps": [-1]}, "'steps' must be 1–300, got -1"),
    (lambda a: a, {"seed": [-1]}, "'seed' must be 0–"),
    (lambda a: a, {"sampler": ["euler"]}, "'sampler' must be one of ddpm, ddim, got 'euler'"),
    (lambda a: a, {"sampler": [b"\xff\xfe"]}, "'sampler' must be one of ddpm, ddim, got '.*'"),
    (lambda a: a, {"start": ["middle"]}, "'start' must be one of noise, got 'middle'"),
    (lambda a: a, {"start": ["lr"]}, "'start' must be one of noise, got 'lr'"),
    (lambda a: a, {"samples": [0]}, "'samples' must be 1–16, got 0"),
    (lambda a: a, {"samples": [17]}, "'samples' must be 1–16, got 17"),
    (lambda a: a, {"output": ["median"]}, "'output' must be one of sample, mean, got 'median'"),
    (lambda a: a, {"output": ["mean"]}, "'output' is 'mean', which needs 'samples' of 2 or more"),
    (lambda a: a, {"denoiser": ["tpu"]}, "'denoiser' must be one of auto, onnx, trt, got 'tpu'"),
    (lambda a: a, {"denoiser": ["trt"]}, "the server runs no TensorRT plan 'unet_trt': build it .*`make plan`"),
    (lambda a: a, {"seed": [1, 2]}, "batch-size|unexpected shape|batch size"),
]


@pytest.mark.parametrize(("change", "options", "message"), BAD)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_input_is_named_and_the_server_lives_on(
    client: triton.InferenceServerClient, change: Any, options: dict[str, Any], message: str
) -> None:
    image = np.asarray(change(IMAGE))
    with pytest.raises(InferenceServerException, match=message):
        request(client, image, **{"steps": [2] * len(image), **options})
    assert request(client, IMAGE, steps=[2]).shape == (1, 64, 64)


def zeros(**shapes: tuple[int, ...]) -> list[tuple[str, NDArray[Any]]]:
    return [(name, np.zeros(shape, DTYPES.get(name, np.float32))) for name, shape in shapes.items()]


FUSED = zeros(image=(1, 16, 16), noise=(1, 4, 8, 8), coefficients=(1, 1, 4))
UNET = zeros(x=(1, 8, 8, 8), t=(1, 1))
INVALID = ("StatusCode.INVALID_ARGUMENT", "400")
WRONG_TENSORS: list[tuple[str, list[tuple[str, NDArray[Any]]], list[str], str]] = [
    ("superres", zeros(seed=(1, 1)), [], "'image' is missing"),
    ("superres", [], [], r"missing required input\(s\) \['image'\]"),
    ("superres", zeros(image=(1, 16, 16), stepps=(1, 1)), [], "unexpected inference input 'stepps'"),
    ("superres", zeros(stepps=(1, 1)), [], "unexpected inference input 'stepps'"),
    ("superres", 2 * zeros(image=(1, 16, 16)), [], "input 'image' already exists"),
    ("superres", zeros(image=(1, 16, 16)) + 2 * zeros(seed=(1, 1)), [], "input 'seed' already exists"),
    ("superres", zeros(image=(2, 16, 16), seed=(1, 1)), [], "'image' batch size does not match"),
    ("superres", zeros(image=(1, 16, 16), steps=(1, 2)), [], "unexpected shape for input 'steps'"),
    (
        "superres",
        [*zeros(image=(1, 16, 16)), ("steps", np.zeros((1, 1), np.int64))],
        [],
        "'steps' data-type is 'INT64'",
    ),
    ("superres", zeros(image=(1, 16, 16)), ["upscalled"], "unexpected inference output 'upscalled'"),
    ("superres_onnx", FUSED[:2], [], r"missing required input\(s\) \['coefficients'\]"),
    ("superres_onnx", [], [], r"missing required input\(s\) \['image','noise','coefficients'\]"),
    ("superres_onnx", FUSED + zeros(more=(1, 1)), [], r"expected 3 inputs but got 4 inputs .*'more'"),
    ("superres_onnx", FUSED[:2] + zeros(more=(1, 1)), [], "unexpected inference input 'more'"),
    ("superres_onnx", FUSED[:2] + FUSED[:1], [], "input 'image' already exists"),
    ("superres_onnx", FUSED[1:] + zeros(image=(1, 1, 16, 16)), [], "unexpected shape for input 'image'"),
    ("unet_onnx", UNET[:1], [], r"missing required input\(s\) \['t'\]"),
    ("unet_onnx", [*UNET[:1], ("t", np.zeros((1, 1), np.int32))], [], "input 't' data-type is 'INT32'"),
    ("unet_onnx", UNET, ["eps"], "unexpected inference output 'eps'"),
    ("vae_encoder", zeros(image=(1, 1, 16, 16)), [], r"missing required input\(s\) \['lr'\]"),
    ("vae_decoder", zeros(lr=(1, 1, 16, 16)), [], r"missing required input\(s\) \['latent'\]"),
]


@pytest.mark.parametrize(("model", "inputs", "outputs", "message"), WRONG_TENSORS)
@pytest.mark.parametrize("library", [triton, tritonclient.http], ids=["grpc", "http"])
def test_tensors_that_are_missing_wrong_or_too_many_are_named(
    server: RunningServer,
    library: Any,
    model: str,
    inputs: list[tuple[str, NDArray[Any]]],
    outputs: list[str],
    message: str,
) -> None:
    tensors = [library.InferInput(n, a.shape, np_to_triton_dtype(a.dtype)) for n, a in inputs]
    for one, (_, array) in zip(tensors, inputs, strict=True):
        one.set_data_from_numpy(array)
    wanted = [library.InferRequestedOutput(name) for name in outputs] or None
    with library.InferenceServerClient(server.url("grpc" if library is triton else "http")) as client:
        with pytest.raises(InferenceServerException, match=message) as error:
            client.infer(model, tensors, outputs=wanted)
    assert str(error.value.status()) in INVALID


@pytest.mark.parametrize("library", [triton, tritonclient.http], ids=["grpc", "http"])
def test_an_unknown_model_is_named(server: RunningServer, library: Any) -> None:
    with library.InferenceServerClient(server.url("grpc" if library is triton else "http")) as client:
        with pytest.raises(InferenceServerException, match="unknown model: 'superress'") as error:
            client.infer("superress", [])
    assert str(error.value.status()) in ("StatusCode.NOT_FOUND", "404")


def failures(server: RunningServer) -> dict[tuple[str, str], int]:
    """The counter by model and reason."""
    connection = http.client.HTTPConnection("localhost", server.metrics)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.findall(r'^cxr_superres_failures_total{model="(\w+)",reason="(\w+)"} (\d+)$', text, re.M)
    return {(model, reason): int(count) for model, reason, count in found}


def refusal(client: triton.InferenceServerClient, **options: Any) -> str:
    with pytest.raises(InferenceServerException) as error:
        request(client, IMAGE, **options)
    return str(error.value)


def test_failures_are_counted_by_both_instances(client: triton.InferenceServerClient, server: RunningServer) -> None:
    before = failures(server)
    assert {reason for model, reason in before if model == "superres"} == {
        *("bad_request", "unavailable", "cancelled", "internal")
    }
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: refusal(client, steps=[-i]), range(16)))
    assert all("'steps' must be 1–300" in message for message in found)
    after = failures(server)
    assert after["superres", "bad_request"] - before["superres", "bad_request"] == 16
    assert {key for key in after if after[key] != before[key]} == {("superres", "bad_request")}


def log_with(server: RunningServer, text: str) -> str:
    """The server's log once it holds the text: it is written a little later than a request is answered."""
    deadline = time.monotonic() + 5
    while text not in (log := server.log.read_text()):
        assert time.monotonic() < deadline, f"'{text}' is not in the log:\n{log[-3000:]}"
        time.sleep(0.05)
    return log


def test_internal_errors_are_logged_with_the_requests_id(
    client: triton.InferenceServerClient, server: RunningServer
) -> None:
    before = failures(server)
    with pytest.raises(InferenceServerException, match="onnxruntime: ") as error:
        client.infer("unet_onnx", [tensor(n, a) for n, a in zeros(x=(1, 8, 9, 9), t=(1, 1))], request_id="of-nine")
    assert error.value.status() == "StatusCode.INTERNAL"
    assert failures(server)["unet_onnx", "internal"] == before["unet_onnx", "internal"] + 1
    (line,) = [line for line in log_with(server, "of-nine").splitlines() if "of-nine" in line]
    assert line.startswith("E")
    assert "unet_onnx: request 'of-nine' failed:" in line
    assert "Traceback (most recent call last)" in line


def test_the_log_has_the_rule_that_a_refused_request_broke_but_not_what_it_sent(
    client: triton.InferenceServerClient, server: RunningServer
) -> None:
    steps = np.zeros((1, 1), np.int32)
    with pytest.raises(InferenceServerException, match="'steps' must be 1–300, got 0"):
        client.infer("superres", [tensor("image", IMAGE), tensor("steps", steps)], request_id="r-77")
    (line,) = [line for line in log_with(server, "r-77").splitlines() if "r-77" in line]
    assert line.startswith("I")
    assert line.endswith("request 'r-77' is not allowed: 'steps' must be 1–300\"")


def test_a_bad_request_does_not_spoil_the_batch_it_came_with(client: triton.InferenceServerClient) -> None:
    def attempt(seed: int) -> Array | str:
        try:
            return request(client, IMAGE, seed=[seed], steps=[4])
        except InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, [0, -1, 1, -2, 2, -3, 3, 4]))
    for seed, result in zip([0, -1, 1, -2, 2, -3, 3, 4], results, strict=True):
        assert isinstance(result, str) if seed < 0 else isinstance(result, np.ndarray)


def save_failing(path: Path) -> None:
    """Put a network with the interface of ``superres_onnx`` that fails when run into the place of another."""
    inputs = {"image": ["B", "H", "W"], "noise": ["B", 4, "h", "w"], "coefficients": ["B", 1, 4]}
    outputs = [tensor.name for tensor in fused_model(DEFAULT).outputs]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["image", "far"], [name], axis=0) for name in outputs],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [helper.make_tensor("far", TensorProto.INT64, [1], [99])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def test_a_network_that_is_missing_or_fails_is_named_in_the_answer(start_server: StartServer, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY, tmp_path / "models")
    save_failing(tmp_path / "models" / "superres_onnx" / "1" / "model.onnx")
    write_hashes(tmp_path / "models")
    path = tmp_path / "models" / "superres_onnx" / "config.pbtxt"
    config = triton_config.read_config(path)
    config.ClearField("model_warmup")  # it would fail too
    path.write_text(text_format.MessageToString(config))
    flags = [
        "--model-control-mode=explicit",
        *(f"--load-model={m}" for m in ("superres", "restorer", "vae_encoder", "vae_decoder")),
    ]
    server = start_server(tmp_path / "models", *flags)
    with triton.InferenceServerClient(server.url("grpc")) as client:
        for _ in range(2):
            with pytest.raises(InferenceServerException, match="unet_onnx") as error:
                request(client, IMAGE, steps=[2])
            assert error.value.status() == "StatusCode.UNAVAILABLE", "worth another try"
        client.load_model("unet_onnx")
        assert request(client, IMAGE, steps=[2]).shape == (1, 64, 64)
        client.load_model("superres_onnx")
        with pytest.raises(InferenceServerException, match="superres_onnx: onnxruntime: ") as error:
            client.infer("superres", [tensor("image", IMAGE)], request_id="first")
        assert error.value.status() == "StatusCode.INTERNAL", "not worth one"
        found = failures(server)
        assert (found["superres", "unavailable"], found["superres", "internal"]) == (2, 1)
    log = log_with(server, "superres: request 'first' failed:")
    assert log.count("cannot be served now: unet_onnx: ") == 2
    server.kill()


def test_a_server_without_metrics_serves_and_answers_errors(start_server: StartServer) -> None:
    server = start_server(REPOSITORY, "--allow-metrics=false")
    with triton.InferenceServerClient(server.url("grpc")) as client:
        assert "'steps' must be 1–300, got 0" in refusal(client, steps=[0])
        assert request(client, IMAGE, steps=[2]).shape == (1, 64, 64)
    server.kill()


def test_a_server_that_is_stopped_under_load_ends_in_order(start_server: StartServer) -> None:
    """Requests that it has accepted are answered by images; later ones are refused, so that clients ask again."""
    server = start_server(REPOSITORY)
    stopped = server.process.poll
    began = Event()

    def load(client: triton.InferenceServerClient, i: int) -> set[str]:
        messages = set()
        while stopped() is None:
            try:
                request(client, random_images(16, 16 + 4 * (i % 4)), steps=[60])
                began.set()
            except InferenceServerException as error:
                messages.add(str(error))
                time.sleep(0.05)
        return messages

    with triton.InferenceServerClient(server.url("grpc")) as client, ThreadPoolExecutor(8) as pool:
        running = [pool.submit(load, client, i) for i in range(8)]
        assert began.wait(30)
        server.process.terminate()
        assert server.process.wait(35) == 0
        messages = set().union(*(future.result() for future in running))
    assert "[StatusCode.UNAVAILABLE] Server not ready" in messages
    assert not any("unet_onnx" in message or "INTERNAL" in message for message in messages)
