"""The denoising U-Net: noisy HR latent ⊕ condition and a timestep in, ε or v out.

The paper states the parameter count, 813,220, but not the widths; the default configuration has exactly that many.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.presets import UNetSpec


def timestep_embedding(t: Tensor, features: int) -> Tensor:
    """Return the sinusoidal embedding of t [B]: float32 [B, features], sines first."""
    half = features // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResidualBlock(nn.Module):
    """conv, norm, + time, conv, norm, and a shortcut, which is a 1×1 convolution if the widths differ."""

    def __init__(self, c_in: int, c_out: int, spec: UNetSpec) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm1 = nn.GroupNorm(spec.norm_groups, c_out)
        self.time = nn.Linear(spec.time_width, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(spec.norm_groups, c_out)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = F.silu(self.norm1(self.conv1(x)) + self.time(time)[:, :, None, None])
        h = self.norm2(self.conv2(h))
        return F.silu(h + self.shortcut(x))


class UNet(nn.Module):
    """Encoder–decoder with skips; fully convolutional for any H and W divisible by ``spec.factor``."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        widths = [spec.base * m for m in spec.multipliers]
        self.time = nn.Sequential(
            nn.Linear(spec.time_features, spec.time_width),
            nn.SiLU(),
            nn.Linear(spec.time_width, spec.time_width),
            nn.SiLU(),
        )
        self.stem = nn.Conv2d(spec.in_channels, spec.base, 3, padding=1)
        self.down = nn.ModuleList(
            ResidualBlock(c_in, c_out, spec) for c_in, c_out in zip([spec.base, *widths], widths, strict=False)
        )
        self.middle = nn.ModuleList(ResidualBlock(widths[-1], widths[-1], spec) for _ in range(spec.middle_blocks))
        self.upsample = nn.ModuleList()
        self.up = nn.ModuleList()
        below = widths[-1]
        for width in reversed(widths):
            self.upsample.append(nn.ConvTranspose2d(below, width, 4, stride=2, padding=1))
            self.up.append(ResidualBlock(2 * width, width, spec))
            below = width
        self.norm = nn.GroupNorm(spec.norm_groups, widths[0])
        self.out = nn.Conv2d(widths[0], spec.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict ε or v, depending on the preset.

        Args:
            x: [B, in_channels, H, W] float32, the noisy HR latent z_t followed by the condition.
            t: [B] or [B, 1], timesteps 0 … T-1.

        Returns:
            [B, out_channels, H, W].
        """
        time = self.time(timestep_embedding(t.reshape(-1), self.spec.time_features))
        h = self.stem(x)
        skips = []
        for block in self.down:
            h = block(h, time)
            skips.append(h)
            h = F.avg_pool2d(h, 2)
        for block in self.middle:
            h = block(h, time)
        for upsample, block in zip(self.upsample, self.up, strict=True):
            h = block(torch.cat([upsample(h), skips.pop()], dim=1), time)
        return self.out(F.silu(self.norm(h)))
