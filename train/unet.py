"""Train the denoising U-Net on cached latents: ε-prediction, mean squared error (Ho et al. 2020, eq. 14).

python -m train.unet --data data/nih --weights weights/paper
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
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from pipeline.schedule import make_schedule
from pipeline.spec import PAPER
from pipeline.unet import UNet
from pipeline.vae import Encoder, load_vae
from pipeline.weights import save_unet
from train import checkpoint
from train.config import option, run_command, settings, settings_key
from train.data import augment, list_images, network_pair, read_gray, split_by_patient
from train.schedule import learning_rate

CHECKPOINT_STEPS = 500


@dataclass(frozen=True)
class UNetTraining:
    data: Path = option(Path("data/nih"), "folder with hr256/ and, for sharper crops, src512/")
    weights: Path = option(Path("weights/paper"), "folder with the autoencoder, vae/; the U-Net goes there too")
    run: Path = option(Path("runs/unet"), "where latents and checkpoint lie; an unfinished run there is continued")
    steps: int = option(5000, "optimiser steps")
    batch: int = option(64, "latents a step")
    rate: float = option(1e-3, "peak learning rate of AdamW; 50 steps of warm-up, then cosine to 0")
    passes: int = option(
        3, "how often each training image is encoded: once as it is, then flipped and cropped at random"
    )
    ema: float = option(0.999, "decay of the averaged weights, which are what is saved")
    seed: int = option(0, "seeds the initial weights, the augmentation and the noise")
    bf16: bool = option(True, "mixed precision")


@torch.inference_mode()
def encode_images(encoder: Encoder, paths: list[Path], sharp: Path, passes: int, seed: int) -> Tensor:
    """(HR latent, LR latent) of every image and pass, float32 [N·passes, 2, 4, 32, 32]."""
    size, latents = PAPER.data.hr_size, []
    for number in range(passes):
        rng = np.random.default_rng([seed, number])
        for path in tqdm(paths, desc=f"latents, pass {number + 1} of {passes}", mininterval=5, leave=False):
            source = sharp / path.name
            if number == 0:
                hr = read_gray(path)
            else:
                image = read_gray(source if source.exists() else path)
                hr = augment(image, size, (0.8, 1.0), rng)
            latents.append(encoder(torch.from_numpy(np.stack(network_pair(hr, PAPER.data.channels)))))
    return torch.stack(latents)


def cached_latents(config: UNetTraining, encoder: Encoder, digest: str) -> dict[str, Tensor]:
    """The latents of the training and validation images, computed once for a run folder.

    Raises:
        ValueError: the folder holds those of another autoencoder, or of other settings.
    """
    path = config.run / "latents.pt"
    key = f"passes={config.passes} seed={config.seed} vae={digest}"
    if (cache := checkpoint.load(path, key)) is None:
        split = split_by_patient(list_images(config.data / "hr256"), PAPER.data)
        cache = {
            side: encode_images(encoder, split[side], config.data / "src512", passes, config.seed)
            for side, passes in (("train", config.passes), ("val", 1))
        }
        checkpoint.save(path, key, cache)
    return cache


def eps_loss(unet: UNet, pairs: Tensor, t: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """‖ε - ε_θ(√ᾱ_t·z_0 + √(1-ᾱ_t)·ε, z_lr, t)‖², mean over elements; ``pairs`` is [B, 2, 4, h, w]: z_0 and z_lr."""
    z_0, z_lr = pairs[:, 0], pairs[:, 1]
    a = alpha_bar[t][:, None, None, None]
    z_t = a.sqrt() * z_0 + (1 - a).sqrt() * noise
    return F.mse_loss(unet(torch.cat([z_t, z_lr], dim=1), t).float(), noise)


@torch.inference_mode()
def validation_loss(unet: UNet, pairs: Tensor, alpha_bar: Tensor, batch: int) -> float:
    """The loss on all pairs with fixed noise and timesteps."""
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for part in torch.split(pairs, batch):
        t = torch.randint(len(alpha_bar), (len(part),), generator=generator)
        noise = torch.randn(part[:, 0].shape, generator=generator)
        total += eps_loss(unet, part, t, noise, alpha_bar).item() * len(part)
    return total / len(pairs)


def train(config: UNetTraining) -> None:
    """Run the training to its end and save the averaged weights."""
    vae = load_vae(config.weights / "vae", PAPER.vae)
    digest = checkpoint.state_digest(vae)
    latents = cached_latents(config, Encoder(vae), digest)
    pairs, val = latents["train"], latents["val"]
    torch.manual_seed(config.seed)
    unet = UNet(PAPER.unet).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = checkpoint.EMA(unet, config.ema)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=config.rate, weight_decay=1e-4)
    alpha_bar = torch.from_numpy(make_schedule(PAPER.diffusion).alpha_bar).float()
    tqdm.write(f"train: {len(pairs)} pairs of latents; validation: {len(val)}; parameters: {PAPER.unet.parameters:,}")

    path, start, seconds = config.run / "checkpoint.pt", 0, 0.0
    key = f"{settings_key(config)} vae={digest}"
    if (state := checkpoint.load(path, key)) is not None:
        unet.load_state_dict(state["unet"])
        ema.module.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        start, seconds = state["step"], state["seconds"]
        tqdm.write(f"continuing '{path}' at step {start}")

    began = time.monotonic() - seconds
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="unet", mininterval=5)
    for step in bar:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        chosen = pairs[torch.randint(len(pairs), (config.batch,), generator=generator)]
        t = torch.randint(PAPER.diffusion.T, (config.batch,), generator=generator)
        noise = torch.randn(chosen[:, 0].shape, generator=generator)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, config.steps, config.rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            loss = eps_loss(unet, chosen, t, noise, alpha_bar)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        ema.update(unet, step)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == config.steps:
            tqdm.write(
                f"step {step + 1}: validation loss {validation_loss(ema.module, val, alpha_bar, config.batch):.4f}"
            )
            tensors = {"unet": unet.state_dict(), "ema": ema.module.state_dict(), "optimiser": optimiser.state_dict()}
            checkpoint.save(path, key, {**tensors, "step": step + 1, "seconds": time.monotonic() - began})

    metadata: dict[str, Any] = {
        "preset": PAPER.name,
        "data": f"NIH ChestX-ray14, {len(pairs)} latent pairs of the training patients, {config.passes} passes",
        "parameters": PAPER.unet.parameters,
        "validation_loss": validation_loss(ema.module, val, alpha_bar, config.batch),
        "config": settings(config),
        "seconds": round(time.monotonic() - began),
        "date": datetime.date.today().isoformat(),
    }
    save_unet(ema.module, config.weights, metadata)
    tqdm.write(f"wrote '{config.weights}/unet.safetensors'")


def main(argv: list[str] | None = None) -> int:
    return run_command(UNetTraining, train, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
