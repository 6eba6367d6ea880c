"""Weights on disk: ``<folder>/vae/`` (a ``save_pretrained`` folder), ``unet.safetensors``, and a JSON beside each."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.spec import Preset
from pipeline.unet import UNet
from pipeline.whole import whole_file


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    path.write_text(json.dumps(metadata, indent=2) + "\n")


def save_vae(vae: AutoencoderKL, folder: Path, metadata: dict[str, Any]) -> None:
    """Write ``folder/vae/`` and ``folder/vae.json``, each file whole or not at all.

    Raises:
        OSError: they cannot be written; older files are kept.
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
    write_metadata(folder / "vae.json", metadata)


def save_unet(unet: UNet, folder: Path, metadata: dict[str, Any]) -> None:
    """Write ``folder/unet.safetensors`` and ``folder/unet.json``; errors as ``save_vae``'s."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "unet.safetensors"
    try:
        with whole_file(path) as partial:
            save_file({name: value.contiguous() for name, value in unet.state_dict().items()}, partial)
    except SafetensorError as error:
        raise OSError(f"cannot write '{path}': {error}") from error
    write_metadata(folder / "unet.json", metadata)


def digest(module: nn.Module) -> str:
    """A short hash of a network's weights, and, of an autoencoder, of its latents' scale."""
    found = hashlib.sha256()
    for value in module.state_dict().values():
        found.update(value.contiguous().cpu().numpy().tobytes())
    if isinstance(module, AutoencoderKL):
        found.update(repr((module.config.scaling_factor, module.config.shift_factor)).encode())
    return found.hexdigest()[:12]


def check_pair(folder: Path, vae: AutoencoderKL) -> None:
    """Raises ValueError where the metadata of the folder's U-Net tell of another autoencoder than ``vae``."""
    path = folder / "unet.json"
    trained_on = json.loads(path.read_text()).get("vae") if path.exists() else None
    if trained_on is not None and trained_on != (found := digest(vae)):
        raise ValueError(
            f"the U-Net in '{folder}' was trained on the latents of another autoencoder (vae {trained_on} in "
            f"unet.json, '{folder}/vae' is {found}): train it anew with train.unet"
        )


def load_unet(folder: Path, preset: Preset) -> UNet:
    """The denoiser of ``folder/unet.safetensors``, in evaluation mode.

    Raises:
        ValueError: the file is missing, damaged, or holds another network than the preset's.
    """
    path = folder / "unet.safetensors"
    unet = UNet(preset.unet)
    try:
        unet.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read '{path}': {error}") from error
    except RuntimeError as error:
        raise ValueError(f"'{path}' does not hold the U-Net of preset '{preset.name}'") from error
    return unet.eval()
