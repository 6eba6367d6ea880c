"""Cached latents of the training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.method.images import to_network
from pipeline.method.upscale import Array, condition, network_lr
from pipeline.networks.vae import Encoder
from pipeline.presets import Preset
from train import checkpoint
from train.data import PairDataset

BATCH = 8


@torch.inference_mode()
def encode_pairs(encoder: Encoder, pairs: PairDataset, preset: Preset, device: torch.device, desc: str) -> Tensor:
    """Encode each item's HR latent and condition: float16 [N, 8, 32, 32], on the CPU."""
    latents = []
    encoder = encoder.to(device)

    def encode(image: Array, lr: Array) -> Array:
        latent: Array = encoder(*(torch.from_numpy(a).to(device) for a in (image, lr))).cpu().numpy()
        return latent

    for first in tqdm(range(0, len(pairs), BATCH), desc=desc, unit="batch", mininterval=2, leave=False):
        low, high = zip(*map(pairs.unit_images, range(first, min(first + BATCH, len(pairs)))), strict=True)
        lr, hr = network_lr(low, preset), np.stack([to_network(image, preset.data.channels) for image in high])
        latents.append(torch.from_numpy(np.concatenate([encode(hr, lr), condition(lr, preset, encode)], 1)).half())
    return torch.cat(latents)


def cached_latents(
    path: Path,
    key: checkpoint.Key,
    encoder: Encoder,
    sides: dict[str, PairDataset],
    preset: Preset,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the latents of each side's dataset, read from ``path`` or encoded and written there.

    Raises:
        ValueError: the file's latents are from another autoencoder or dataset.
        OSError: the file cannot be written.
    """
    if (cache := checkpoint.load(path, key)) is None:
        cache = {
            side: encode_pairs(encoder, pairs, preset, device, f"latents, {side}") for side, pairs in sides.items()
        }
        checkpoint.save(path, key, cache)
    return cache
