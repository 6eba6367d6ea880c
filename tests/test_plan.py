"""Building, checking and installing plans, without a GPU: nvidia-smi and trtexec are scripts, the server is real."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client import Client
from pipeline import ROOT
from pipeline.export.parity import Parity
from pipeline.serving import checks
from pipeline.serving.local_server import not_ready, running_server
from pipeline.spec import Model
from pipeline.tensorrt import builder, plan
from pipeline.tensorrt.builder import Builder, PlanError
from pipeline.tensorrt.plan import Gpu, find_gpu, install, main
from pipeline.triton_config import config_text, read_config
from tests.test_builder import fake_trtexec
from tests.test_parity import perturb

GPU = Gpu("NVIDIA H200", "570.86.15", "9.0", "12.8")
COPY = "pathlib.Path(options['--saveEngine']).write_bytes(pathlib.Path(options['--onnx']).read_bytes())"
GOOD = Parity({"unet_trt at t = 1": 0.01}, psnr=60.0, dark=0.1)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first folder of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(builder, "TRTEXEC", (str(folder / "trtexec"),))
    return folder


def fake_nvidia_smi(folder: Path, answer: str, status: int = 0) -> None:
    """It writes its arguments down, and answers a query with ``answer``."""
    script = folder / "nvidia-smi"
    script.write_text(
        f"#!/bin/sh\necho \"$*\" >> {folder}/asked\n[ $# = 0 ] && echo '| CUDA Version: 12.8 |' && exit\n"
        f"echo '{answer}'\nexit {status}\n"
    )
    script.chmod(0o755)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "model_repository", tmp_path / "models" / "repository")
    return tmp_path / "models" / "repository"


@pytest.fixture
def gpu(path: Path) -> Path:
    """A GPU and a trtexec whose "plan" is the ONNX file."""
    fake_nvidia_smi(path, "NVIDIA H200, 570.86.15, 9.0")
    fake_trtexec(path, COPY)
    return path


@pytest.fixture
def onnx_as_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server run such "plans" by its ONNX backend."""

    def text(model: Model, files: Mapping[str, str]) -> str:
        file = next(iter(files.values()), "model.plan")
        return config_text(replace(model, backend="onnxruntime")).replace("model.onnx", file)

    monkeypatch.setattr(plan, "config_text", text)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server: whatever is built passes."""
    monkeypatch.setattr(plan, "check", lambda *_: GOOD)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_refused(repository: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """main() fails with one line, and leaves everything as it was."""
    before = contents(repository.parent)
    assert main(["--model-repository", str(repository), *arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert contents(repository.parent) == before
    return message


def test_the_gpu_is_the_one_that_cuda_takes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(path, "NVIDIA H200, 570.86.15, 9.0")
    assert find_gpu() == GPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    find_gpu()
    asked = (path / "asked").read_text().split("\n")
    assert [line.split()[0] for line in asked if "query" in line] == ["--id=0", "--id=3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(PlanError, match="CUDA_VISIBLE_DEVICES is empty"):
        find_gpu()


def test_no_driver(
    repository: Path, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(path))
    assert "nvidia-smi not found): build the plan on the GPU that will run it" in assert_refused(repository, capsys)


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        ("NVIDIA-SMI has failed", 9, "nvidia-smi says 'NVIDIA-SMI has failed'"),
        ("No devices were found", 0, "nvidia-smi says 'No devices were found'"),
        ("NVIDIA K40, 390.1, [N/A]", 0, "nvidia-smi says 'NVIDIA K40, 390.1, [N/A]'"),
    ],
)
def test_no_gpu(
    repository: Path, path: Path, answer: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_nvidia_smi(path, answer, status)
    assert message in assert_refused(repository, capsys)


def test_no_tensorrt(
    repository: Path, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_nvidia_smi(path, "NVIDIA H200, 570.86.15, 9.0")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "neither trtexec nor the Python package tensorrt" in assert_refused(repository, capsys)


def test_a_failing_trtexec_leaves_nothing(repository: Path, gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_trtexec(gpu, "print('[E] no memory'); sys.exit(1)")
    assert "trtexec failed with status 1: [E] no memory" in assert_refused(repository, capsys)


@pytest.mark.usefixtures("gpu")
def test_a_damaged_repository(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = repository / "superres" / "config.pbtxt"
    text = config.read_text()
    config.write_text("max_batch_size: many")
    assert "superres/config.pbtxt': 1:" in assert_refused(repository, capsys)
    config.write_text(text)
    (repository / "vae_decoder" / "1" / "model.onnx").unlink()
    assert "vae_decoder/1/model.onnx' is missing: restore it with git" in assert_refused(repository, capsys, "--all")
    missing = repository.with_name("missing")
    assert main(["--model-repository", str(missing)]) == 1
    assert "missing' is not a directory: set the repository with --model-repository" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("gpu", "onnx_as_plan")
def test_a_plan_is_built_checked_installed_and_served(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-repository", str(repository)]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "built by TensorRT 10.8.0 for NVIDIA H200; comparing" in out
    assert "PSNR 100.0 dB" in out
    assert [line for line in out.splitlines() if line.startswith("wrote ")] == [
        f"wrote '{repository}/{name}/1/model.plan'" for name in ("unet_trt", "superres_trt")
    ]
    assert sorted(contents(repository / "unet_trt")) == ["1/model.json", "1/model.plan", "config.pbtxt"]
    assert [p.name for p in repository.parent.iterdir()] == ["repository"]
    about = json.loads((repository / "unet_trt" / "1" / "model.json").read_text())
    source = (repository / "unet_onnx" / "1" / "model.onnx").read_bytes()
    assert (about["onnx"], about["onnx_sha256"]) == ("unet_onnx/1/model.onnx", hashlib.sha256(source).hexdigest())
    assert (about["tensorrt"], about["precision"], about["preset"]) == ("10.8.0", "fp16", "best")
    assert about["gpu"] == {
        "name": "NVIDIA H200", "driver": "570.86.15", "compute_capability": "9.0", "cuda": "12.8",
    }  # fmt: skip
    assert about["profile"]["x"]["largest"] == [16, 8, 256, 256]
    assert about["parity"]["psnr"] == 100.0
    # "auto" takes the plan: another network under its name changes the image, and "onnx" does not see it
    perturb(repository / "superres_trt" / "1" / "model.plan", factor=0.5, last=0.0)
    with running_server(repository.parent / "log", repository, ["--runtime=onnxruntime"]) as url, Client(url) as client:
        image = np.random.default_rng(0).random((32, 32), np.float32)
        auto, trt, onnx = (client.upscale(image, denoiser=d).image for d in ("auto", "trt", "onnx"))
    np.testing.assert_array_equal(auto, trt)
    assert np.abs(auto - onnx).max() > 0.01


@pytest.mark.slow
@pytest.mark.usefixtures("onnx_as_plan")
def test_a_plan_that_is_not_the_network_replaces_nothing(
    repository: Path, gpu: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_trtexec(
        gpu,
        f"{COPY}\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.test_parity import perturb\n"
        "perturb(pathlib.Path(options['--saveEngine']), 1.5, 0.0)",
    )
    (repository / "unet_trt" / "1").mkdir(parents=True)
    (repository / "unet_trt" / "1" / "model.plan").write_text("the old plan")
    assert "error must be below 5%, got unet_trt at t = 299: 50.0%" in assert_refused(repository, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_a_plan_that_no_server_loads_replaces_nothing(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = assert_refused(repository, capsys)
    assert "the server cannot load 'unet_trt': " in message
    assert "TensorRT" in message.partition("unet_trt")[2]


def test_no_server_at_all_is_one_line(
    repository: Path, gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(gpu / "nvidia-smi"))
    message = assert_refused(repository, capsys)
    assert "the server cannot run the plan: the server stopped with status 1: " in message
    assert "cannot write the backend directory" in message


@pytest.mark.usefixtures("gpu", "passes")
def test_all_three_are_built_and_replace_what_was_there(repository: Path) -> None:
    assert main(["--model-repository", str(repository), "--all"]) == 0
    (repository / "vae_decoder_trt" / "1" / "left over").write_text("")
    assert main(["--model-repository", str(repository), "--all"]) == 0
    for name in ("unet_trt", "vae_encoder_trt", "vae_decoder_trt"):
        assert sorted(contents(repository / name)) == ["1/model.json", "1/model.plan", "config.pbtxt"]
        assert read_config(repository / name / "config.pbtxt").backend == "tensorrt"
    checks.check_repository(repository)


@pytest.mark.usefixtures("passes")
def test_plans_of_several_kinds_of_gpus_share_a_repository(repository: Path, gpu: Path) -> None:
    for name, capability in (("NVIDIA H200", "9.0"), ("NVIDIA L4", "8.9"), ("NVIDIA H200", "9.0")):
        fake_nvidia_smi(gpu, f"{name}, 570.86.15, {capability}")
        assert main(["--model-repository", str(repository), "--keep-others"]) == 0
    files = read_config(repository / "unet_trt" / "config.pbtxt").cc_model_filenames
    assert dict(files) == {"8.9": "model_sm89.plan", "9.0": "model_sm90.plan"}
    for file in files.values():
        assert (repository / "unet_trt" / "1" / file).is_file()
    assert json.loads((repository / "unet_trt" / "1" / "model_sm89.json").read_text())["gpu"]["name"] == "NVIDIA L4"
    checks.check_repository(repository)
    assert main(["--model-repository", str(repository)]) == 0
    assert sorted(contents(repository / "unet_trt")) == ["1/model.json", "1/model.plan", "config.pbtxt"]


@pytest.mark.usefixtures("gpu", "passes")
def test_a_strongly_typed_tensorrt_gets_a_cast_file_that_does_not_stay(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def cast(onnx: Path, target: Path, precision: str) -> Path:
        built.append((onnx, precision))
        return target

    monkeypatch.setattr(plan, "cast", cast)
    monkeypatch.setattr(
        plan,
        "find_builder",
        lambda _: Builder("11.4.0", False, lambda onnx, file, *_: file.write_text(f"plan of {onnx.name}")),
    )
    assert main(["--model-repository", str(repository), "--precision", "bf16"]) == 0
    assert built == [(repository / name / "1" / "model.onnx", "bf16") for name in ("unet_onnx", "superres_onnx")]
    assert (repository / "unet_trt" / "1" / "model.plan").read_text() == "plan of unet_onnx.onnx"
    assert sorted(contents(repository / "unet_trt")) == ["1/model.json", "1/model.plan", "config.pbtxt"]
    assert main(["--model-repository", str(repository), "--precision", "fp32"]) == 0
    assert len(built) == 2, "fp32 is what the file says already"


@pytest.fixture
def installable(tmp_path: Path) -> tuple[Path, Path]:
    """A staging folder and a repository, both with models a and b; the repository has the network too."""
    for name in ("staging/a", "staging/b", "target/a", "target/b", "target/network"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "staging", tmp_path / "target"


NEW = {"a/file": b"staging/a", "b/file": b"staging/b", "network/file": b"target/network"}


def test_folders_are_installed_together_or_not_at_all(
    installable: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, target = installable
    before = contents(target)
    replace_: Callable[..., None] = os.replace

    def fails_at_the_last(source: Path, place: Path) -> None:
        if (source.name, place) == ("b", target / "b"):
            raise OSError(source.name)
        replace_(source, place)

    monkeypatch.setattr(os, "replace", fails_at_the_last)
    with pytest.raises(OSError, match="^b$"):
        install(staging, target, ["a", "b"], "network")
    assert contents(target) == before
    monkeypatch.undo()
    install(staging, target, ["a", "b"], "network")
    assert contents(target) == NEW


def test_a_repository_that_is_a_mount_of_its_own_gets_its_plans(
    installable: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, target = installable
    rename: Callable[..., None] = os.replace

    def within_a_filesystem(source: Path, place: Path) -> None:
        assert {path.name for path in target.iterdir()} <= {"a", "b", "network"}, "a server takes the rest for models"
        if source.is_relative_to(target) != place.is_relative_to(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, place)

    monkeypatch.setattr(os, "replace", within_a_filesystem)
    install(staging, target, ["a", "b"], "network")
    assert contents(target) == NEW


@pytest.mark.usefixtures("gpu")
def test_interrupted(repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "check", interrupt)
    before = contents(repository.parent)
    assert main(["--model-repository", str(repository)]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was replaced\n"
    assert contents(repository.parent) == before


@pytest.mark.gpu
def test_on_a_gpu_a_real_plan_passes_and_is_served(repository: Path) -> None:
    command = [sys.executable, "-m", "pipeline.plan", "--model-repository", str(repository)]
    subprocess.run(command, check=True, cwd=ROOT)
    with running_server(repository.parent / "log", repository) as url:
        assert not_ready(url, "unet_trt") is None
        with Client(url) as client:
            image = np.random.default_rng(0).random((64, 64), np.float32)
            auto, trt, onnx = (client.upscale(image, denoiser=d).image for d in ("auto", "trt", "onnx"))
    np.testing.assert_array_equal(auto, trt)
    assert np.abs(trt - onnx).max() < 0.02
