"""Weights on disk: the autoencoder (see ``vae_path``), ``unet.safetensors``, and a JSON file beside each."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from pipeline.atomic import atomic_write
from pipeline.hashes import file_hash
from pipeline.networks.tensors import load_tensors, save_tensors
from pipeline.networks.unet import UNet
from pipeline.networks.vae import DETAIL_FILE, VAE
from pipeline.presets import Preset

Array = NDArray[np.float32]


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    path.write_text(json.dumps(metadata, indent=2) + "\n")


def save_kl(vae: AutoencoderKL, folder: Path) -> None:
    """Write ``folder/vae/``, each file atomically.

    Raises:
        OSError: the files cannot be written; existing ones are kept.
    """
    partial = folder / "vae.partial"
    try:
        vae.save_pretrained(partial)
        (folder / "vae").mkdir(exist_ok=True)
        for file in partial.iterdir():
            os.replace(file, folder / "vae" / file.name)
    except SafetensorError as error:
        raise OSError(f"cannot write '{folder}/vae': {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_vae(vae: VAE, folder: Path, metadata: dict[str, Any]) -> None:
    """Write the autoencoder and ``folder/vae.json``; raise OSError on failure."""
    if isinstance(vae, AutoencoderKL):
        save_kl(vae, folder)
    else:
        save_tensors(vae, folder / DETAIL_FILE)
    write_metadata(folder / "vae.json", metadata)


def save_unet(unet: UNet, folder: Path, metadata: dict[str, Any]) -> None:
    """Write ``folder/unet.safetensors`` and ``folder/unet.json``, with its hash; raise OSError on failure."""
    path = folder / "unet.safetensors"
    save_tensors(unet, path)
    write_metadata(folder / "unet.json", metadata | {"sha256": file_hash(path)})


RANGES_FILE = "ranges.safetensors"


def save_ranges(ranges: Mapping[str, Array], folder: Path, metadata: Mapping[str, str]) -> None:
    """Write the ranges for ``pipeline.export.quantize``, with the networks' digests as metadata.

    Raises:
        OSError: the file cannot be written; an existing one is kept.
    """
    path = folder / RANGES_FILE
    try:
        with atomic_write(path) as partial:
            save_file(dict(ranges), partial, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(f"cannot write '{path}': {error}") from error


def load_ranges(folder: Path, networks: Mapping[str, nn.Module]) -> dict[str, Array]:
    """Load the ranges of the networks' convolutions, by their names in ``pipeline.networks.fused.Fused``.

    Raises:
        ValueError: the file is missing, damaged, or was recorded from other weights.
    """
    path = folder / RANGES_FILE
    remedy = f"record them with  python -m train.ranges --data PAIRS --weights {folder}"
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            ranges = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except FileNotFoundError:
        raise ValueError(f"'{path}', the ranges for INT8, is missing: {remedy}") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read '{path}': {error}") from error
    if any(metadata.get(name) != digest(network) for name, network in networks.items()):
        raise ValueError(f"'{path}' was recorded from other weights than those beside it: {remedy}")
    return ranges


def digest(module: nn.Module) -> str:
    """Return a short hash of a network's weights and, for an ``AutoencoderKL``, its latents' scale."""
    found = hashlib.sha256()
    for value in module.state_dict().values():
        found.update(value.contiguous().cpu().numpy().tobytes())
    if isinstance(module, AutoencoderKL):
        found.update(repr((module.config.scaling_factor, module.config.shift_factor)).encode())
    return found.hexdigest()[:12]


def check_unet(folder: Path) -> None:
    """Raise ValueError if the folder's U-Net is not the one that its metadata describes; without a hash, say nothing.

    The autoencoder needs no such check: ``check_pair`` compares it with the one that the U-Net was trained with.
    """
    path, file = folder / "unet.json", folder / "unet.safetensors"
    expected = json.loads(path.read_text()).get("sha256") if path.exists() and file.exists() else None
    if expected is not None and expected != (found := file_hash(file)):
        raise ValueError(
            f"'{file}' is not the U-Net of unet.json beside it: its SHA-256 must be {expected}, got {found}; restore "
            "both with git, or train it again with train.unet"
        )


def check_pair(folder: Path, vae: VAE) -> None:
    """Raise ValueError if the folder's U-Net was, by its metadata, trained with an autoencoder other than ``vae``."""
    path = folder / "unet.json"
    trained_on = json.loads(path.read_text()).get("vae") if path.exists() else None
    if trained_on is not None and trained_on != (found := digest(vae)):
        raise ValueError(
            f"the U-Net in '{folder}' was trained on the latents of another autoencoder (vae {trained_on} in "
            f"unet.json, the one there is {found}): train it again with train.unet"
        )


def load_unet(folder: Path, preset: Preset) -> UNet:
    """Load the denoiser from ``folder/unet.safetensors``, in evaluation mode.

    Raises:
        ValueError: the file is missing, damaged, holds a different network, or differs from its hash.
    """
    check_unet(folder)
    unet = UNet(preset.unet)
    load_tensors(unet, folder / "unet.safetensors", f"the U-Net of preset '{preset.name}'")
    return unet.eval()
