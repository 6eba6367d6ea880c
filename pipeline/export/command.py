"""Export weights to the model repository's ONNX files and configurations, replacing the old ones only if verified.

python -m pipeline.export
python -m pipeline.export --preset paper
python -m pipeline.export --preset paper --vae stabilityai/sd-vae-ft-mse --weights my/weights --model-repository models
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from pipeline.atomic import atomic_write
from pipeline.command_line import make_parser
from pipeline.export.parity import MAX_DARK, MIN_PSNR, ParityError, compare_images, radiographs
from pipeline.export.quantize import quantize
from pipeline.export.unroll import unroll
from pipeline.hashes import write_hashes
from pipeline.method.images import psnr
from pipeline.method.options import Options
from pipeline.method.upscale import Array, Call, generator, upscale
from pipeline.models import onnx_models
from pipeline.networks import eager
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.fused import Denoise, Fused
from pipeline.networks.vae import Restore
from pipeline.networks.weights import load_ranges
from pipeline.presets import DEFAULT, PRESETS, Preset
from pipeline.runtimes.onnx import onnx_networks, onnxruntime_network, open_session
from pipeline.spec import INT8_FILE, UNROLLED_STEPS, Model, Tensor
from pipeline.triton_config import update

OPSET = 18
MAX_RELATIVE_ERROR = 1e-4
MIN_PARITY_DB = 55.0

ONNX_TYPES = {"FP32": onnx.TensorProto.FLOAT}


class ExportError(Exception):
    """An exported graph does not match the specification or PyTorch."""


def random_inputs(model: Model, batch: int, seed: int, stretch: float = 2) -> dict[str, NDArray[np.float32]]:
    """Return random inputs of the warm-up shape, with one side stretched so that H ≠ W, over their specified range."""
    rng = np.random.default_rng(seed)
    inputs = {}
    for tensor, dims in zip(model.inputs, model.warmup, strict=True):
        shape = (batch, *dims[:-1], int(stretch * dims[-1])) if -1 in tensor.dims else (batch, *dims)
        if tensor.range is None:
            inputs[tensor.name] = rng.standard_normal(shape, dtype=np.float32)
        else:
            inputs[tensor.name] = rng.uniform(*tensor.range, shape).astype(np.float32)
    return inputs


def write_onnx(network: nn.Module, model: Model, path: Path) -> None:
    """Export to ONNX with a dynamic batch axis and every -1 of the specification dynamic."""
    example = random_inputs(model, batch=2, seed=0)
    unrolled = model.name == "denoise"
    if unrolled:
        example |= {name: example[name][:, :1] for name in model.input_names[2:]}
    dynamic = tuple(
        {0: torch.export.Dim.DYNAMIC, **{i + 1: torch.export.Dim.DYNAMIC for i, d in enumerate(tensor.dims) if d == -1}}
        for tensor in model.inputs
    )
    # the exporter warns about missing torchvision and PyTorch's own deprecations, which are irrelevant here
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(torch.from_numpy(a) for a in example.values()),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in model.inputs],
            output_names=[tensor.name for tensor in model.outputs],
            dynamic_shapes=dynamic,
            external_data=False,
            verbose=False,
        )
    proto = onnx.load(str(path))
    strip_metadata(proto)
    onnx.save(unroll(proto, UNROLLED_STEPS) if unrolled else proto, str(path))


def strip_metadata(proto: onnx.ModelProto) -> None:
    """Remove the exporter's source locations, which hold paths of the machine it ran on."""
    graph = proto.graph
    parts = (proto, graph, graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for part in chain.from_iterable(p if isinstance(p, Iterable) else [p] for p in (*parts, proto.functions)):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _differences(tensors: tuple[Tensor, ...], values: list[onnx.ValueInfoProto]) -> Iterator[str]:
    names, found = [t.name for t in tensors], [v.name for v in values]
    if names != found:
        yield f"tensors must be {names}, got {found}"
        return
    for tensor, value in zip(tensors, values, strict=True):
        kind = value.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        if kind.elem_type != ONNX_TYPES[tensor.dtype]:
            yield f"'{tensor.name}' must be {tensor.dtype}, got {onnx.TensorProto.DataType.Name(kind.elem_type)}"
        if dims != (-1, *tensor.dims):
            yield f"'{tensor.name}' must have dims {(-1, *tensor.dims)}, got {dims}"


def check_graph(path: Path, model: Model) -> None:
    """Check the graph's inputs, outputs and opset against the specification.

    Raises:
        ExportError: they differ.
    """
    proto = onnx.load(str(path))
    onnx.checker.check_model(proto)
    differences = [
        *_differences(model.inputs, list(proto.graph.input)),
        *_differences(model.outputs, list(proto.graph.output)),
    ]
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if opset < 17:
        differences.append(f"opset must be 17 or newer, got {opset}")
    if differences:
        raise ExportError(f"{model.name}: " + "; ".join(differences))


@torch.inference_mode()
def relative_error(network: nn.Module, model: Model, path: Path, batch: int) -> float:
    """Return the largest max │onnxruntime - PyTorch│ / max │PyTorch│ of any output on random inputs."""
    inputs = random_inputs(model, batch, seed=1, stretch=0.5)
    expected = network(*(torch.from_numpy(a) for a in inputs.values()))
    found = open_session(path).run(None, inputs)
    outputs = zip([expected] if isinstance(expected, torch.Tensor) else expected, found, strict=True)
    return max(float(np.abs(b - a.numpy()).max() / np.abs(a.numpy()).max()) for a, b in outputs)


def whole_image_parity(pipeline: eager.Eager, repository: Path) -> float:
    """Return the PSNR between PyTorch and onnxruntime for a synthetic image, same seed, all T steps of DDPM."""
    preset = pipeline.preset
    rng = np.random.default_rng(0)
    side = preset.data.lr_size
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    values = 0.5 + 0.3 * np.sin(5 * x + 3 * y) + 0.05 * rng.standard_normal((side, side))
    image = np.clip(values, 0, 1).astype(np.float32)
    ddpm = Options.of(preset, sampler="ddpm")
    generators = generator(onnx_networks(repository, preset), preset, ddpm), pipeline.generator(ddpm)
    ours, reference = (upscale([image], [0], generate, preset)[0].upscaled for generate in generators)
    return psnr(ours, reference)


def select_ranges(model: Model, ranges: Mapping[str, Array]) -> dict[str, Array]:
    """Return the ranges of the model's convolutions; ``ranges`` uses the names of ``pipeline.networks.fused.Fused``."""
    return {name: value for name, value in ranges.items() if model.name == "superres_onnx" or name.startswith("vae.")}


def decode(network: Call, latent: Array, lr: Array) -> tuple[Array, ...]:
    return network(latent=latent, lr=lr)


def check_int8(repository: Path, preset: Preset) -> None:
    """Compare whole images from each INT8 file with those from the float32 files.

    Raises:
        ExportError: the difference exceeds the parity gate.
        ParityError: the radiograph to compare is missing.
    """
    exact = onnx_networks(repository, preset)
    for model in (model for model in onnx_models(preset) if model.name in preset.int8):
        network = onnxruntime_network(repository / model.name / "1" / INT8_FILE, model)
        if model.name == preset.fused:
            both = exact, replace(exact, fused=network)
        else:
            both = replace(exact, fused=None), replace(exact, fused=None, decode=partial(decode, network))
        for image in radiographs(preset):
            reference, found = (upscale([image], [0], generator(n, preset), preset)[0].upscaled for n in both)
            db, dark = compare_images(found, reference)
            tqdm.write(
                f"{model.name} in INT8: PSNR to float32 {db:.1f} dB, dark areas shifted by {dark:.2f} gray levels"
            )
            if not (db > MIN_PSNR and dark < MAX_DARK):
                raise ExportError(
                    f"{model.name} in INT8: must reach {MIN_PSNR:g} dB and stay below {MAX_DARK:g} gray levels"
                )


def networks(pipeline: eager.Eager) -> dict[str, nn.Module]:
    """Return the networks to export by model name."""
    vae = pipeline.decoder.vae
    detail_networks: dict[str, nn.Module] = {}
    if isinstance(vae, DetailVAE):
        detail_networks = {"superres_onnx": Fused(pipeline.unet, vae), "restorer": Restore(vae)}
    return {
        "unet_onnx": pipeline.unet,
        "vae_encoder": pipeline.encoder,
        "vae_decoder": pipeline.decoder,
        "denoise": Denoise(pipeline.unet),
        **detail_networks,
    }


def export(weights: Path, repository: Path, preset: Preset, vae: str | None = None) -> None:
    """Export and verify, then make the ONNX files, hashes and configurations in ``repository`` exactly the preset's.

    Raises:
        ExportError: a graph differs from the specification or from PyTorch.
        ParityError: the radiograph for the INT8 check is missing.
        ValueError: weights or INT8 ranges are missing, damaged or of another network.
    """
    pipeline = eager.load(weights, preset, vae=vae)
    exported = networks(pipeline)
    ranges = load_ranges(weights, {"vae": pipeline.decoder.vae, "unet": pipeline.unet}) if preset.int8 else {}
    repository.mkdir(parents=True, exist_ok=True)
    # outside the repository, where a server would take every folder for a model
    with tempfile.TemporaryDirectory() as staging:
        for model in tqdm(onnx_models(preset), desc="export", leave=False):
            path = Path(staging) / model.name / "1" / "model.onnx"
            path.parent.mkdir(parents=True)
            network = exported[model.name].eval()
            write_onnx(network, model, path)
            check_graph(path, model)
            errors = {batch: relative_error(network, model, path, batch) for batch in (1, 3, 8)}
            tqdm.write(
                f"{model.name}: max relative error " + ", ".join(f"{e:.1e} (batch {b})" for b, e in errors.items())
            )
            if not max(errors.values()) < MAX_RELATIVE_ERROR:
                raise ExportError(f"{model.name}: differs from PyTorch by {max(errors.values()):.1e}")
            if model.name in preset.int8:
                onnx.save(quantize(onnx.load(str(path)), select_ranges(model, ranges)), str(path.with_name(INT8_FILE)))
        parity = whole_image_parity(pipeline, Path(staging))
        tqdm.write(f"whole image, {preset.diffusion.T} steps: PSNR between PyTorch and onnxruntime {parity:.1f} dB")
        if not parity > MIN_PARITY_DB:
            raise ExportError(f"whole image: parity must be above {MIN_PARITY_DB} dB, got {parity:.1f} dB")
        check_int8(Path(staging), preset)
        # copy all files next to their targets before replacing the first
        with contextlib.ExitStack() as stack:
            for path in sorted(Path(staging).glob("*/1/*.onnx")):
                target = repository / path.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, stack.enter_context(atomic_write(target)))
    update(repository, preset)
    write_hashes(repository)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "python -m pipeline.export")
    parser.add_argument("--preset", choices=PRESETS, default=DEFAULT.name, help="default: %(default)s")
    parser.add_argument("--weights", type=Path, help="default: weights/PRESET")
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    parser.add_argument("--vae", help="another AutoencoderKL for preset paper: a save_pretrained folder or a hub name")
    args = parser.parse_args(argv)
    try:
        weights = args.weights or Path("weights") / args.preset
        export(weights, args.model_repository, PRESETS[args.preset], args.vae)
    except (ExportError, ParityError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
