"""The restorer: any LR image ⇒ the LR image of the paper's protocol, and the image's history.

Viewers and archives reduce images with other kernels, add noise and compress them. The restorer undoes this, so that
the generator gets the images it was trained on.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.networks.blocks import Residual, conv3
from pipeline.presets import RestorerSpec
from pipeline.spec import HISTORY

GAIN = 8.0
BLOCK = 8
"""Side, in pixels, of the blocks whose frequencies reveal an image's history."""
STRIDE = 3
"""Distance between blocks: odd, so that they cover every alignment with JPEG's blocks."""
MIN_POWER = 0.02
"""Constant added to a frequency's power, in gray levels squared; less is hidden by rounding."""


def cosines() -> Tensor:
    """Return the discrete cosine transform (type II) of a block, with a sine window: [BLOCK², 1, BLOCK, BLOCK]."""
    x = torch.arange(BLOCK) + 0.5
    waves = torch.cos(torch.pi / BLOCK * x * torch.arange(BLOCK)[:, None]) * torch.sin(torch.pi / BLOCK * x)
    waves = waves / waves.norm(dim=1, keepdim=True)
    return torch.einsum("ai,bj->abij", waves, waves).flatten(0, 1)[:, None]


class Restorer(nn.Module):
    """LR image ⇒ (restored LR image, history); without normalisation, so that results do not depend on the size."""

    cosines: Tensor

    def __init__(self, spec: RestorerSpec) -> None:
        super().__init__()
        w, folded = spec.width, spec.fold**2
        self.spec = spec
        self.stem = conv3(2 * folded, w)
        self.blocks = nn.Sequential(*(Residual(w) for _ in range(spec.blocks)))
        self.out = conv3(w, folded)
        features, hidden = 2 * BLOCK**2, spec.hidden
        self.head = nn.Sequential(
            nn.Linear(features, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden // 2),
            nn.SiLU(),
            nn.Linear(hidden // 2, HISTORY),
        )
        self.register_buffer("cosines", cosines(), persistent=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                # PyTorch's defaults are too small for fast training without normalisation
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        with torch.no_grad():  # untrained, it leaves images unchanged
            for parameter in self.out.parameters():
                parameter.zero_()

    def forward(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Restore LR images.

        Args:
            lr: [B, 1, h, w] in [-1, 1]; sides are multiples of ``spec.fold`` and at least BLOCK.

        Returns:
            The restored images [B, 1, h, w], approximately in [-1, 1], and the history [B, HISTORY]: logits of each of
            ``REDUCTIONS`` and of any other, and the logarithm of the standard deviation of noise and compression, in
            gray levels of 255.
        """
        detail = detail_of(lr)
        squares = F.pixel_unshuffle(torch.cat([lr, detail], dim=1), self.spec.fold)
        features = self.blocks(self.stem(squares))
        restored: Tensor = lr + F.pixel_shuffle(self.out(features), self.spec.fold).float() / GAIN
        return restored, self.history(detail)

    def history(self, detail: Tensor) -> Tensor:
        """Return the history from ``detail_of`` LR images; see ``forward``.

        The power of each frequency reveals how much a reduction attenuates it and how much noise and rounding add. It
        is averaged over the image linearly and, to limit the influence of a few edges, logarithmically.
        """
        power = F.conv2d(127.5 / GAIN * detail, self.cosines, stride=STRIDE).square() + MIN_POWER
        found = torch.cat([power.mean(dim=(2, 3)).log(), power.log().mean(dim=(2, 3))], dim=1)
        return self.head(found / 2).float()


def detail_of(lr: Tensor) -> Tensor:
    """Return LR images minus their local mean, times GAIN: noise and edges, which are small relative to gray values."""
    (h, w), reach = lr.shape[2:], 2
    padded, count = F.pad(lr, [reach] * 4, mode="replicate"), 2 * reach + 1
    # sums are faster than pooling a single channel
    rows = reduce(add, [padded.narrow(2, k, h) for k in range(count)]) / count
    mean = reduce(add, [rows.narrow(3, k, w) for k in range(count)]) / count
    return GAIN * (lr - mean)


def estimates(history: Tensor, presentation: Tensor) -> Tensor:
    """Convert the outputs of ``Restorer`` and ``Presentation`` to estimates [B, ESTIMATES].

    These are probabilities and the standard deviation of noise and compression, in [0, 1] of gray.
    """
    return torch.cat([history[:, :-1].softmax(dim=1), history[:, -1:].exp() / 255, presentation.softmax(dim=1)], dim=1)
