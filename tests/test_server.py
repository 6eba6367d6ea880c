"""The shipped model repository in a real server: results, batching, determinism, and bad input of every kind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from pipeline.images import psnr
from pipeline.onnx_networks import onnx_networks
from pipeline.serve import ROOT
from pipeline.spec import PAPER
from pipeline.superres import upscale
from tests.conftest import Array, RunningServer, StartServer

REPOSITORY = ROOT / "model_repository"
SIZES = [(64, 64), (65, 97), (128, 96), (16, 16)]


def tensor(name: str, array: NDArray[Any]) -> triton.InferInput:
    result = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    result.set_data_from_numpy(array)
    return result


def request(client: triton.InferenceServerClient, image: NDArray[Any], **options: Any) -> Array:
    """Send ``image`` [B, H, W] as it is, with options [B] of the dtypes that the model names."""
    dtypes = {"seed": np.int64, "steps": np.int32, "sampler": np.object_, "start": np.object_, "denoiser": np.object_}
    inputs = [tensor("image", image)]
    for name, values in options.items():
        inputs.append(tensor(name, np.array(values, dtypes[name]).reshape(-1, 1)))
    result: Array = client.infer("superres", inputs).as_numpy("upscaled")
    return result


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
    (local,) = upscale(list(images), [5], onnx_networks(REPOSITORY), PAPER, steps=12)
    assert psnr(served[0], local) > 50


def test_defaults_are_the_presets(client: triton.InferenceServerClient) -> None:
    images = random_images(16, 16)
    explicit = request(client, images, seed=[0], steps=[10], sampler=["ddim"], start=["lr"], denoiser=["auto"])
    np.testing.assert_array_equal(request(client, images), explicit)


def test_same_input_gives_the_same_bytes_and_options_matter(client: triton.InferenceServerClient) -> None:
    images = random_images(32, 32)
    base = request(client, images, seed=[1], steps=[8], sampler=["ddpm"])
    np.testing.assert_array_equal(request(client, images, seed=[1], steps=[8], sampler=["ddpm"]), base)
    for other in (
        request(client, images, seed=[2], steps=[8], sampler=["ddpm"]),
        request(client, images, seed=[1], steps=[9], sampler=["ddpm"]),
        request(client, images, seed=[1], steps=[8], sampler=["ddim"]),
        request(client, images, seed=[1], steps=[8], sampler=["ddpm"], start=["noise"]),
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


def test_separate_requests_run_together(client: triton.InferenceServerClient) -> None:
    def counts() -> tuple[int, int]:
        (stats,) = client.get_inference_statistics("superres").model_stats
        return stats.inference_count, stats.execution_count

    inferences, executions = counts()
    images = random_images(64, 64)
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda seed: request(client, images, seed=[seed], steps=[60]), range(10)))
    after = counts()
    assert after[0] - inferences == 10
    assert after[1] - executions < 10


def test_requests_are_batched_in_the_unet(client: triton.InferenceServerClient) -> None:
    def counts() -> tuple[int, int]:
        (stats,) = client.get_inference_statistics("unet_onnx").model_stats
        return stats.inference_count, stats.execution_count

    inferences, executions = counts()
    request(client, random_images(64, 64, count=8), seed=list(range(8)), steps=[10] * 8)
    after = counts()
    assert (after[0] - inferences, after[1] - executions) == (80, 10)


IMAGE = random_images(16, 16)
BAD = [
    (lambda a: a[:, :1], {}, "'image' is 1×16 pixels, allowed are 2 to 512 a side"),
    (lambda a: a[:, :1, :1], {}, "'image' is 1×1 pixels"),
    (lambda _: np.zeros((1, 513, 16), np.float32), {}, "'image' is 513×16 pixels, allowed are 2 to 512 a side"),
    (lambda a: np.where(a > 0.9, np.nan, a), {}, "NaN or infinite values, allowed are 0 to 1"),
    (lambda a: np.where(a > 0.9, np.inf, a), {}, "NaN or infinite values, allowed are 0 to 1"),
    (lambda a: a * 255, {}, "'image' has values from .* allowed are 0 to 1"),
    (lambda a: a - 0.5, {}, "'image' has values from .* allowed are 0 to 1"),
    (lambda a: a[0], {}, "unexpected shape for input 'image'"),
    (lambda a: a[None], {}, "unexpected shape for input 'image'"),
    (lambda a: np.repeat(a, 17, axis=0), {}, "batch-size must be <= 16"),
    (lambda a: (a * 255).astype(np.uint8), {}, "data-type is 'UINT8', but model 'superres' expects 'FP32'"),
    (lambda a: a.astype(np.float64), {}, "data-type is 'FP64', but model 'superres' expects 'FP32'"),
    (lambda a: a, {"steps": [0]}, "'steps' is 0, allowed are 1 to 300"),
    (lambda a: a, {"steps": [301]}, "'steps' is 301, allowed are 1 to 300"),
    (lambda a: a, {"steps": [-1]}, "'steps' is -1, allowed are 1 to 300"),
    (lambda a: a, {"seed": [-1]}, "'seed' is -1, allowed are 0 to"),
    (lambda a: a, {"sampler": ["euler"]}, "'sampler' is 'euler', allowed are ddpm, ddim"),
    (lambda a: a, {"sampler": [b"\xff\xfe"]}, "'sampler' is '.*', allowed are ddpm, ddim"),
    (lambda a: a, {"start": ["middle"]}, "'start' is 'middle', allowed are noise, lr"),
    (lambda a: a, {"denoiser": ["tpu"]}, "'denoiser' is 'tpu', allowed are auto, onnx, trt"),
    (lambda a: a, {"denoiser": ["trt"]}, "the TensorRT plan is not built: build it .*trtexec --onnx="),
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


def test_unknown_input_is_named(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="unexpected inference input 'stepps'"):
        client.infer("superres", [tensor("image", IMAGE), tensor("stepps", np.array([[3]], np.int32))])


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


def test_a_missing_network_is_named_in_the_answer(start_server: StartServer, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY, tmp_path / "models")
    flags = [
        "--model-control-mode=explicit",
        *(f"--load-model={m}" for m in ("superres", "vae_encoder", "vae_decoder")),
    ]
    server = start_server(tmp_path / "models", *flags)
    with triton.InferenceServerClient(server.url("grpc")) as client:
        with pytest.raises(InferenceServerException, match="unet_onnx"):
            request(client, IMAGE, steps=[2])
        client.load_model("unet_onnx")
        assert request(client, IMAGE, steps=[2]).shape == (1, 64, 64)
