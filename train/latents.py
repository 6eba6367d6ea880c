"""The images as latents, encoded once."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.images import from_network, to_network, upsample
from pipeline.vae import Encoder
from train import checkpoint
from train.data import PairDataset

BATCH = 8


def encoder_input(lr: Tensor) -> Tensor:
    """LR [B, 3, 64, 64] ⇒ bicubic ×4 [B, 3, 256, 256], both in [-1, 1], as ``pipeline.superres.network_input``."""
    images = [to_network(upsample(from_network(image.numpy())), image.shape[0]) for image in lr]
    return torch.stack([torch.from_numpy(image) for image in images])


@torch.inference_mode()
def encode_pairs(encoder: Encoder, pairs: PairDataset, device: torch.device, desc: str) -> Tensor:
    """float16 [N, 2, 4, 32, 32]: HR and LR latent of every item, on the CPU."""
    latents = []
    encoder = encoder.to(device)
    with tqdm(total=len(pairs), desc=desc, unit="pair", mininterval=2, leave=False) as bar:
        for lr, hr in DataLoader(pairs, batch_size=BATCH):
            z_0, z_lr = encoder(torch.cat([hr, encoder_input(lr)]).to(device)).chunk(2)
            latents.append(torch.stack([z_0, z_lr], dim=1).half().cpu())
            bar.update(len(lr))
    return torch.cat(latents)


def cached_latents(
    path: Path, key: checkpoint.Key, encoder: Encoder, sides: dict[str, PairDataset], device: torch.device
) -> dict[str, Tensor]:
    """The latents of each side's data set, from ``path`` or newly encoded and written there.

    Raises:
        ValueError: the file holds those of another autoencoder or data set.
        OSError: it cannot be written.
    """
    if (cache := checkpoint.load(path, key)) is None:
        cache = {side: encode_pairs(encoder, pairs, device, f"latents, {side}") for side, pairs in sides.items()}
        checkpoint.save(path, key, cache)
    return cache
