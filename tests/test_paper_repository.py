"""A model repository of preset paper: exported, served, and with another autoencoder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from client import Client
from pipeline import ROOT, triton_config
from pipeline.export import command as export
from pipeline.hashes import NAME, check_hashes
from pipeline.method.images import psnr
from pipeline.method.upscale import generator, upscale
from pipeline.models import models, onnx_models
from pipeline.presets import PAPER
from pipeline.runtimes.onnx import onnx_networks
from pipeline.spec import Model
from tests.conftest import StartServer
from tests.test_vae import tiny_vae

pytestmark = pytest.mark.slow

UNET, ENCODER, DECODER, *_ = onnx_models(PAPER)


@pytest.fixture(scope="module")
def paper_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported from the weights as they are shipped."""
    repository = tmp_path_factory.mktemp("paper") / "models"
    for name in ("superres", "superres_stream"):
        shutil.copytree(ROOT / "model_repository" / name, repository / name)
    for command in (export.main, triton_config.main):
        assert command(["--preset", "paper", "--model-repository", str(repository)]) == 0
    return repository


def test_it_is_served(start_server: StartServer, paper_repository: Path) -> None:
    server = start_server(paper_repository)
    image = np.random.default_rng(0).random((20, 33), dtype=np.float32)
    generate = generator(onnx_networks(paper_repository, PAPER), PAPER)
    for protocol in ("grpc", "http"):
        with Client(server.url(protocol), protocol=protocol) as client:
            assert client.preset == PAPER
            result = client.upscale(image)
            assert (result.preset, result.options.steps, result.options.start) == ("paper", 10, "lr")
            assert not result.options.faithful
            assert psnr(result.image, upscale([image], [0], generate, PAPER)[0].upscaled) > 50


def test_exports_a_pretrained_autoencoder_with_attention(
    paper_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = export.write_onnx

    def write_the_autoencoder(network: nn.Module, model: Model, path: Path) -> None:
        """What is made of the same U-Net is exported already, and is still compared with it."""
        if model.name.startswith("vae_"):
            write(network, model, path)
        else:
            shutil.copy(paper_repository / model.name / "1" / "model.onnx", path)

    monkeypatch.setattr(export, "write_onnx", write_the_autoencoder)
    tiny_vae().save_pretrained(tmp_path / "vae")
    repository = tmp_path / "repository"
    weights = str(ROOT / "weights" / "paper")
    arguments = [
        "--preset",
        "paper",
        "--weights",
        weights,
        "--vae",
        str(tmp_path / "vae"),
        "--model-repository",
        str(repository),
    ]
    assert export.main(arguments) == 0, capsys.readouterr().err
    for model in (UNET, ENCODER, DECODER):
        export.check_graph(repository / model.name / "1" / "model.onnx", model)
    assert triton_config.main(["--model-repository", str(repository), "--preset", "paper", "--check"]) == 0
    assert {p.name for p in repository.iterdir()} == {NAME, *(model.name for model in models(PAPER))}
    assert check_hashes(repository) is not None
