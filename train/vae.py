"""Train the small autoencoder: L1 + LPIPS + KL on random crops.

python -m train.vae --data data/nih --out weights/paper
"""

from __future__ import annotations

import datetime
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pipeline.images import to_network
from pipeline.spec import PAPER
from pipeline.vae import make_vae, set_latent_scale
from pipeline.weights import save_vae
from train import checkpoint
from train.config import option, run_command, settings, settings_key
from train.data import augment, list_images, read_gray, split_by_patient
from train.lpips import LPIPS
from train.schedule import learning_rate


@dataclass(frozen=True)
class VAETraining:
    data: Path = option(Path("data/nih"), "folder with hr256/ and, for sharper crops, src512/")
    out: Path = option(Path("weights/paper"), "where the weights go")
    run: Path = option(Path("runs/vae"), "where the checkpoint lies; an unfinished run there is continued")
    steps: int = option(1050, "optimiser steps")
    batch: int = option(16, "128² crops a step; every fourth step takes a quarter as many whole 256² images")
    rate: float = option(8e-4, "peak learning rate of AdamW; 50 steps of warm-up, then cosine to 0")
    lpips: float = option(0.3, "weight of LPIPS beside L1")
    kl: float = option(1e-4, "weight of the KL divergence, mean over latent elements")
    ema: float = option(0.995, "decay of the averaged weights, which are what is saved")
    seed: int = option(0, "seeds the initial weights, the crops and the latent noise")
    bf16: bool = option(True, "mixed precision")


def draw_batch(
    step: int, config: VAETraining, whole: list[NDArray[np.uint8]], sharp: list[NDArray[np.uint8]]
) -> NDArray[np.float32]:
    """The batch of one step, a function of the seed and the step alone: [B, 3, S, S] in [-1, 1]."""
    rng = np.random.default_rng([config.seed, step])
    size, count = (256, max(1, config.batch // 4)) if step % 4 == 3 else (128, config.batch)
    crops = []
    for _ in range(count):
        if sharp and rng.random() < 0.4:
            image = sharp[rng.integers(len(sharp))]
            scale = (size / image.shape[0], min(1.0, 2 * size / image.shape[0]))
        else:
            image = whole[rng.integers(len(whole))]
            scale = (size / image.shape[0], size / image.shape[0])
        crops.append(to_network(augment(image, size, scale, rng).astype(np.float32) / 255, PAPER.vae.channels))
    return np.stack(crops)


def loss_terms(vae: AutoencoderKL, lpips: LPIPS, x: Tensor, bf16: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(L1, LPIPS, KL) of the reconstruction of x through a sampled latent."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return (y.float() - x).abs().mean(), lpips(y.float(), x).mean(), kl


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, images: list[NDArray[np.uint8]]) -> tuple[float, float]:
    """Mean and standard deviation of the raw latents of training images."""
    latents = []
    for image in images:
        x = torch.from_numpy(to_network(image.astype(np.float32) / 255, PAPER.vae.channels))[None]
        latents.append(vae.encode(x).latent_dist.mean)
    z = torch.cat(latents)
    return float(z.mean()), float(z.std())


def train(config: VAETraining) -> None:
    """Run the training to its end and save the averaged weights."""
    torch.manual_seed(config.seed)
    split = split_by_patient(list_images(config.data / "hr256"), PAPER.data)
    whole = [read_gray(p) for p in split["train"]]
    names = {p.name for p in split["train"]}
    sharp = [read_gray(p) for p in sorted((config.data / "src512").glob("*.png")) if p.name in names]
    vae = make_vae(PAPER.vae)
    lpips = LPIPS("alex")
    ema = checkpoint.EMA(vae, config.ema)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    parameters = sum(p.numel() for p in vae.parameters())
    tqdm.write(f"train: {len(whole)} images, {len(sharp)} of them also at 512²; parameters: {parameters:,}")

    path, start, seconds = config.run / "checkpoint.pt", 0, 0.0
    key = settings_key(config)
    if (state := checkpoint.load(path, key)) is not None:
        vae.load_state_dict(state["vae"])
        ema.module.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        start, seconds = state["step"], state["seconds"]
        tqdm.write(f"continuing '{path}' at step {start}")

    began = time.monotonic() - seconds
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="vae", mininterval=5)
    for step in bar:
        torch.manual_seed(config.seed + step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config.steps, config.rate)
        x = torch.from_numpy(draw_batch(step, config, whole, sharp))
        l1, perceptual, kl = loss_terms(vae, lpips, x, config.bf16)
        loss = l1 + config.lpips * perceptual + config.kl * kl
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        ema.update(vae, step)
        if step % 10 == 0:
            bar.set_postfix(l1=f"{l1.item():.4f}", lpips=f"{perceptual.item():.4f}", kl=f"{kl.item():.2f}")
        if (step + 1) % 50 == 0 or step + 1 == config.steps:
            tensors = {"vae": vae.state_dict(), "ema": ema.module.state_dict(), "optimiser": optimiser.state_dict()}
            checkpoint.save(path, key, {**tensors, "step": step + 1, "seconds": time.monotonic() - began})

    mean, std = latent_statistics(ema.module, whole[:200])
    set_latent_scale(ema.module, mean, std)
    metadata: dict[str, Any] = {
        "preset": PAPER.name,
        "data": f"NIH ChestX-ray14, {len(whole)} training images, {len(sharp)} of them also at 512²",
        "split": {side: len(paths) for side, paths in split.items()},
        "latent_mean": mean,
        "latent_std": std,
        "parameters": parameters,
        "config": settings(config),
        "seconds": round(time.monotonic() - began),
        "date": datetime.date.today().isoformat(),
    }
    save_vae(ema.module, config.out, metadata)
    tqdm.write(f"wrote '{config.out}/vae'; latent mean {mean:.4f}, standard deviation {std:.4f}")


def main(argv: list[str] | None = None) -> int:
    return run_command(VAETraining, train, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
