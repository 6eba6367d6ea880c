"""The repository's models on PyTorch, onnxruntime and TensorRT, for ``benchmarks.gpu``.

None of them copies to the host: inputs and outputs are tensors on one device; calls run on PyTorch's current stream.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.eager import Eager
from pipeline.networks.fused import Denoise, Fused
from pipeline.presets import Preset
from pipeline.spec import Model
from pipeline.tensorrt.builder import PlanError, Precision, Profile, Shape, api_builder, cast

Network = Callable[..., tuple[Tensor, ...]]
"""Model, inputs by name, float32 on the device ⇒ outputs, which the next call may overwrite."""

WARM_UP = 3
"""Calls until all runtimes have allocated memory, chosen algorithms and recorded graphs."""


class Unavailable(Exception):
    """This variant is not available here; the message says why."""


def load(names: Sequence[str]) -> ModuleType:
    """Import the first of these packages that is installed.

    Raises:
        Unavailable: none is installed, or it does not load.
    """
    reasons = []
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(str(error))
    raise Unavailable("; ".join(reasons))


def buffers(model: Model, preset: Preset, batch: int, device: torch.device) -> dict[str, Tensor]:
    """Return zeros for all inputs, then all outputs, for images of the preset's size."""
    hr = preset.data.hr_size
    side = hr if model.name in ("vae_decoder", "superres_onnx") else hr // preset.vae.factor
    shapes = dict(zip(model.input_names, model.warmup, strict=True))
    for tensor in model.outputs:
        shapes[tensor.name] = tuple(side if d == -1 else d for d in tensor.dims)
    return {name: torch.zeros((batch, *dims), device=device) for name, dims in shapes.items()}


def pytorch_networks(system: Eager) -> dict[str, Network]:
    """Return the models needed for an image, by name; ``denoise`` accepts any number of steps."""
    vae = system.decoder.vae
    if isinstance(vae, DetailVAE):
        return {"superres_onnx": Fused(system.unet, vae)}
    return {
        "vae_encoder": lambda **x: (system.encoder(**x),),
        "denoise": lambda **x: (Denoise(system.unet)(**x),),
        "vae_decoder": system.decoder,
    }


def graphed(run: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    """Record a function as a CUDA graph on the same memory.

    Raises:
        RuntimeError: the function uses operations unsupported in graphs, such as waiting for the device.
    """
    for _ in range(WARM_UP):
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        outputs = run()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay


def onnxruntime_network(
    path: Path, model: Model, preset: Preset, batch: int, device: torch.device, graph: bool
) -> Network:
    """Return a session with inputs and outputs bound to device memory; ``graph``: replayed as a CUDA graph.

    Raises:
        Unavailable: onnxruntime or its CUDA provider is not installed, or the model cannot be loaded.
        Exception: any error from onnxruntime, such as for a model unsupported in graphs.
    """
    ort = load(["onnxruntime"])
    run_options = ort.RunOptions()
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        ort.preload_dlls()
        stream = torch.cuda.current_stream(device)
        settings = {"user_compute_stream": str(stream.cuda_stream), "enable_cuda_graph": str(int(graph))}
        providers = [("CUDAExecutionProvider", settings)]
        run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    if not path.is_file():
        raise Unavailable(f"'{path}' is missing")
    session = ort.InferenceSession(str(path), providers=providers)
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise Unavailable("its CUDA provider does not load: is onnxruntime-gpu installed for this CUDA version?")
    inputs = buffers(model, preset, batch, device)
    binding = session.io_binding()
    for name, tensor in inputs.items():
        bind = binding.bind_input if name in model.input_names else binding.bind_output
        bind(name, device.type, device.index or 0, "float32", list(tensor.shape), tensor.data_ptr())
    outputs = tuple(inputs[tensor.name] for tensor in model.outputs)

    def run(**arrays: Tensor) -> tuple[Tensor, ...]:
        for name, array in arrays.items():
            inputs[name].copy_(array)
        session.run_with_iobinding(binding, run_options)
        return outputs

    for _ in range(WARM_UP):
        run()
    return run


def build_plan(trt: Any, onnx: Path, shapes: dict[str, Shape], precision: Precision) -> bytes:
    """Build a plan for exactly these input shapes.

    Raises:
        Unavailable: the plan cannot be built, or not in this precision.
    """
    profiles = {name: Profile(shape, shape, shape) for name, shape in shapes.items()}
    builder = api_builder(trt)
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "model.plan"
        try:
            if precision != "fp32" and not builder.flags:
                onnx = cast(onnx, Path(folder) / "model.onnx", precision)
            builder.build(onnx, plan, profiles, precision, None)
        except PlanError as error:
            raise Unavailable(str(error)) from error
        return plan.read_bytes()


def tensorrt_network(
    trt: Any, path: Path, model: Model, preset: Preset, batch: int, precision: Precision, device: torch.device
) -> Network:
    """Return a plan built for this batch, bound to device memory.

    Raises:
        Unavailable: the plan cannot be built or loaded.
    """
    tensors = buffers(model, preset, batch, device)
    plan = build_plan(trt, path, {name: tuple(tensors[name].shape) for name in model.input_names}, precision)
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
    context = engine.create_execution_context() if engine else None
    if context is None:
        raise Unavailable(f"TensorRT {trt.__version__} cannot load its own plan of {model.name}")
    for name in model.input_names:
        context.set_input_shape(name, tuple(tensors[name].shape))
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())
    outputs = tuple(tensors[tensor.name] for tensor in model.outputs)

    def run(**arrays: Tensor) -> tuple[Tensor, ...]:
        for name, array in arrays.items():
            tensors[name].copy_(array)
        if not context.execute_async_v3(torch.cuda.current_stream(device).cuda_stream):
            raise Unavailable(f"TensorRT cannot execute {model.name}")
        return outputs

    return run
