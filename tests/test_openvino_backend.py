"""The shipped repository by OpenVINO in bfloat16, in a real server: the same images as by onnxruntime, nearly."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from client import Client
from pipeline import ROOT
from pipeline.method.images import psnr
from pipeline.presets import BEST
from tests.conftest import RunningServer, StartServer

pytestmark = pytest.mark.slow

REPOSITORY = ROOT / "model_repository"
MIN_PSNR = 45.0
"""dB between two runtimes on images unlike any radiograph."""


@pytest.fixture(scope="module")
def openvino(start_server: StartServer) -> RunningServer:
    return start_server(REPOSITORY, runtime="openvino")


def test_the_networks_run_by_openvino(openvino: RunningServer) -> None:
    with triton.InferenceServerClient(openvino.url("grpc")) as client:
        backends = {m: client.get_model_config(m).config.backend for m in ("superres", *BEST.bfloat16)}
    assert backends == {"superres": "python", **dict.fromkeys(BEST.bfloat16, "openvino")}


@pytest.mark.parametrize("options", [{}, {"steps": 4}, {"samples": 3, "output": "mean"}], ids=str)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 50)])
def test_images_are_those_of_onnxruntime(
    server: RunningServer, openvino: RunningServer, height: int, width: int, options: dict[str, object]
) -> None:
    smooth = np.random.default_rng(0).random((height // 4 + 1, width // 4 + 1), dtype=np.float32)
    image = np.kron(smooth, np.ones((4, 4), np.float32))[:height, :width]
    found, expected = (
        Client(s.url("grpc")).upscale(image, seed=1, **options)  # type: ignore[arg-type]
        for s in (openvino, server)
    )
    assert psnr(found.image, expected.image) > MIN_PSNR
    assert found.degradation == expected.degradation
    assert found.lr_error == pytest.approx(expected.lr_error, abs=0.02)


def test_a_damaged_file_is_named(tmp_path: Path, start_server: StartServer) -> None:
    shutil.copytree(REPOSITORY / "unet_onnx", tmp_path / "unet_onnx")
    shutil.copytree(REPOSITORY / "vae_decoder", tmp_path / "vae_decoder")
    path = tmp_path / "unet_onnx" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    server = start_server(tmp_path, "--exit-on-error=false", ready="vae_decoder", runtime="openvino")
    assert f"OpenVINO cannot load '{path}'" in server.log.read_text()


def test_errors_of_the_runtime_reach_the_client(openvino: RunningServer) -> None:
    with triton.InferenceServerClient(openvino.url("grpc")) as client:
        x, t = np.zeros((1, 8, 9, 9), np.float32), np.zeros((1, 1), np.float32)
        inputs = [triton.InferInput(n, a.shape, "FP32").set_data_from_numpy(a) for n, a in (("x", x), ("t", t))]
        with pytest.raises(InferenceServerException, match="OpenVINO: "):
            client.infer("unet_onnx", inputs)
        assert client.is_model_ready("unet_onnx")


def test_models_without_such_a_configuration_keep_their_own(tmp_path: Path, start_server: StartServer) -> None:
    """As preset ``paper``'s encoder, which is not exact enough in bfloat16."""
    shutil.copytree(REPOSITORY / "vae_decoder", tmp_path / "vae_decoder", ignore=shutil.ignore_patterns("configs"))
    server = start_server(tmp_path, ready="vae_decoder", runtime="openvino")
    with triton.InferenceServerClient(server.url("grpc")) as client:
        assert client.get_model_config("vae_decoder").config.backend == "onnxruntime"
