"""Building blocks of the networks without normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_SCALE = 0.1
"""Factor on the initial weights of residual outputs: an untrained network starts as bicubic upsampling."""


def scale_down(conv: nn.Conv2d) -> nn.Conv2d:
    with torch.no_grad():
        conv.weight.mul_(INITIAL_SCALE)
    return conv


def conv3(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


class Residual(nn.Module):
    """x + conv(SiLU(conv(x))) with 3×3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv3(width, width), scale_down(conv3(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv2(F.silu(self.conv1(x)))
        return y
