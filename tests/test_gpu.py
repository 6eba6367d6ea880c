"""Ways to an image on a GPU: what of them runs without one."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx_bindings as rtx
import torch
from onnx import TensorProto, helper

from benchmarks import gpu, gpu_networks, gpu_variants
from benchmarks.gpu import Timed
from benchmarks.gpu_networks import Unavailable
from client import Client
from pipeline import ROOT
from pipeline.method.images import Image
from pipeline.method.options import Options
from pipeline.method.upscale import upscale
from pipeline.networks import eager
from pipeline.presets import BEST, PAPER, PRESETS, Preset
from pipeline.spec import Model, Tensor
from tests.conftest import RunningServer

CPU = torch.device("cpu", 0)
BEST_ARGUMENTS = ["--device", "cpu", "--preset", "best", "--batch", "1", "2", "--rounds", "1"]


def job_of(preset: Preset, batch: int) -> gpu_variants.Job:
    return gpu_variants.make_job(preset, 10 if preset == PAPER else 1, CPU, batch)


def system_of(preset: Preset) -> eager.Eager:
    return eager.load(ROOT / "weights" / preset.name, preset)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@torch.inference_mode()
def test_what_a_graph_would_hold_makes_eagers_images(preset: Preset) -> None:
    job, system = job_of(preset, 2), system_of(preset)
    found = gpu_variants.on_device(job, gpu_networks.pytorch_networks(system))()
    reference = gpu_variants.eager_variant(system, job)()
    assert gpu.min_psnr(found, reference) > 60
    assert gpu.min_psnr(reference[:1], found[1:]) < 60, "the images of a batch have noise of their own"


@torch.inference_mode()
def test_a_way_starts_from_the_image_and_the_noise_each_time() -> None:
    way = gpu_variants.on_device(job_of(BEST, 1), gpu_networks.pytorch_networks(system_of(BEST)))
    np.testing.assert_array_equal(way(), way())


def test_noise_is_that_of_the_seeds() -> None:
    job, system = job_of(PAPER, 1), system_of(PAPER)
    assert len(job.noise) == 10, "one to start from, and one for every step but the last"
    drawn = system.generator(Options.of(system.preset, steps=10, sampler="ddpm"))
    found = upscale(job.images, [0], drawn, PAPER)[0].upscaled
    np.testing.assert_array_equal(gpu_variants.eager_variant(system, job)()[0], found)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_outputs_have_the_networks_shapes(preset: Preset) -> None:
    networks = gpu_networks.pytorch_networks(system_of(preset))
    for model in gpu_variants.used_models(preset):
        tensors = gpu_networks.buffers(model, preset, 2, CPU)
        with torch.inference_mode():
            found = networks[model.name](**{name: tensors[name] for name in model.input_names})
        assert [tensors[tensor.name].shape for tensor in model.outputs] == [output.shape for output in found]


@torch.inference_mode()
def test_the_server_makes_eagers_image(server: RunningServer) -> None:
    job = job_of(BEST, 2)
    with ExitStack() as stack:
        client = stack.enter_context(Client(server.url("grpc")))
        found = gpu_variants.server_variant(job, client, stack)()
    assert gpu.min_psnr(found, gpu_variants.eager_variant(system_of(BEST), job)()) > 40


@pytest.mark.slow
def test_command_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(BEST_ARGUMENTS) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    for batch in ("1", "2"):
        ways = figures["found"]["best"][batch]
        assert list(ways) == ["eager", "onnxruntime"]
        assert ways["onnxruntime"]["psnr"] > 50
        assert ways["eager"]["speedup"] == 1.0
    left_out = [line for line in lines if line.startswith("skipped: ")]
    assert len(left_out) == len(gpu_variants.VARIANTS) - 2
    assert "skipped: Triton, preset best: needs a CUDA device" in left_out
    assert "| best: ms per image | 5 | not measured |" in "\n".join(lines)


def test_preset_paper_without_a_repository_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--preset", "paper", "--steps", "10", "--batch", "1", "--rounds", "1"]
    assert gpu.main([*arguments, "--model-repository-paper", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"skipped: onnxruntime, preset paper: '{tmp_path}/vae_encoder/1/model.onnx' is missing" in printed
    assert "| paper, 10 steps |" in printed
    assert "| paper, 300 steps: images/s | 300 | not measured | not measured |" in printed


def test_no_exporter_leaves_the_onnx_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pipeline.export.command", None)
    with ExitStack() as stack, pytest.raises(Unavailable, match="preset paper cannot be exported"):
        gpu_variants.find_repository(PAPER, None, stack)


def test_what_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(Unavailable, match="tensorrt"):
        gpu_networks.load(["tensorrt"])


def test_the_second_best_comes_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> int:
        raise RuntimeError("no\n graphs")

    assert gpu_variants.with_fallback(refuse, lambda: 2, "runs without a graph") == 2
    assert capsys.readouterr().out == "note: runs without a graph: no graphs\n"


def test_plans_are_built_for_one_batch(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 8]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert gpu_networks.build_plan(rtx, tmp_path / "model.onnx", {"x": (4, 8)}, "fp32")
    with pytest.raises(Unavailable):
        gpu_networks.build_plan(rtx, tmp_path / "absent.onnx", {"x": (4, 8)}, "fp32")


class HostContext:
    """TensorRT's execution context of y = 2·x, on the host's memory."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        count = int(np.prod(self.shapes["x"]))
        x, y = (np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses[n])) for n in ("x", "y"))
        y[:] = 2 * x
        return stream == 7


def test_plans_run_on_torchs_memory_and_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(create_execution_context=HostContext)
    runtime = SimpleNamespace(deserialize_cuda_engine={b"plan": engine}.get)

    class Trt:
        class Logger:
            ERROR = 0

            def __init__(self, severity: int) -> None: ...

        @staticmethod
        def Runtime(_: Logger) -> Any:
            return runtime

    monkeypatch.setattr(gpu_networks, "build_plan", lambda *_: b"plan")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=7))
    x, y = (Tensor(name, "FP32", (3,)) for name in ("x", "y"))
    model = Model("double", "onnxruntime", inputs=(x,), outputs=(y,), warmup=((3,),))
    run = gpu_networks.tensorrt_network(Trt, Path("double.onnx"), model, BEST, 2, "fp32", CPU)
    given = torch.arange(6.0).reshape(2, 3)
    torch.testing.assert_close(run(x=given)[0], 2 * given)


def test_every_way_of_every_batch_has_its_turn_in_each_round() -> None:
    calls = []

    def way(name: str, value: float) -> gpu_variants.Variant:
        def run() -> list[Image]:
            calls.append(name)
            return [np.full((2, 2), value, np.float32)]

        return run

    jobs = [{"eager": way("a", 0.0), "graph": way("b", 0.0)}, {"eager": way("c", 0.0), "graph": way("d", 0.1)}]
    found = gpu.compare(jobs, rounds=2)
    assert calls == ["a", "b", "c", "d"] * 3
    assert found[0]["graph"].psnr == gpu.EQUAL_DB
    assert found[1]["graph"].psnr == pytest.approx(20, abs=0.2), "an image of another gray shows"


def test_targets_are_read_off_the_server_and_the_fastest_way() -> None:
    slow, fast = Timed(70.0, 14.0, 9.0, 60.0), Timed(7.0, 140.0, 90.0, 60.0)
    many = Timed(32.0, 500.0, 90.0, 60.0)
    found = {"paper": {1: {"eager": slow, "triton": slow, "tensorrt-fp16": fast}, 16: {"eager": slow, "triton": many}}}
    lines = gpu.targets_table(found, 300).splitlines()
    assert "| paper, 300 steps: ms per image | 60 | 70.0, missed | 7.0, reached | TensorRT, fp16 |" in lines
    assert "| paper, 300 steps: PyTorch eager / it | 10 | 9.0, missed | 90.0, reached | TensorRT, fp16 |" in lines
    assert "| paper, 300 steps: images/s | 300 | 500.0, reached | 500.0, reached | Triton |" in lines
    assert "| best: ms per image | 5 | not measured | not measured | – |" in lines
    assert "reached" not in gpu.targets_table(found, 10), "other steps are another thing"


@pytest.mark.parametrize(
    "arguments", [["--steps", "7"], ["--steps", "310"], ["--steps", "0"], ["--rounds", "0"], ["--batch", "17"]]
)
def test_impossible_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", *arguments])
    assert f"argument {arguments[0]}: " in capsys.readouterr().err


def test_no_cuda_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert capsys.readouterr().err == "error: PyTorch finds no CUDA device: use --device cpu\n"


def test_script_without_pytorch(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh"],
        env={"PYTHON": str(python), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: '{python}' has no PyTorch")


def test_models_that_an_image_takes() -> None:
    for preset, names in ((BEST, {"superres_onnx"}), (PAPER, {"vae_encoder", "denoise", "vae_decoder"})):
        assert {model.name for model in gpu_variants.used_models(preset)} == names
