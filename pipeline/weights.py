"""Weights on disk: ``<folder>/vae/`` (a ``save_pretrained`` folder), ``unet.safetensors``, and a JSON beside each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.spec import Preset
from pipeline.unet import UNet


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    path.write_text(json.dumps(metadata, indent=2) + "\n")


def save_vae(vae: AutoencoderKL, folder: Path, metadata: dict[str, Any]) -> None:
    """Write ``folder/vae/`` and ``folder/vae.json``."""
    vae.save_pretrained(folder / "vae")
    write_metadata(folder / "vae.json", metadata)


def save_unet(unet: UNet, folder: Path, metadata: dict[str, Any]) -> None:
    """Write ``folder/unet.safetensors`` and ``folder/unet.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in unet.state_dict().items()}, folder / "unet.safetensors")
    write_metadata(folder / "unet.json", metadata)


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
