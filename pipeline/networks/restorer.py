"""The network before the others: any LR image ⇒ what the paper's protocol would have given, and its history.

Viewers and archives reduce images by other kernels, add noise and compress them. The generator behind it is spared
that: it sees what it was trained on.
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
"""Side of the squares whose frequencies tell an image's history, in pixels."""
STRIDE = 3
"""From square to square: odd, so that they lie on JPEG's blocks in every way."""
MIN_POWER = 0.02
"""Added to the power of a frequency, in gray levels squared: below that, rounding hides what there is."""


def cosines() -> Tensor:
    """The discrete cosine transform (type II) of a square, under a sine window: [BLOCK², 1, BLOCK, BLOCK]."""
    x = torch.arange(BLOCK) + 0.5
    waves = torch.cos(torch.pi / BLOCK * x * torch.arange(BLOCK)[:, None]) * torch.sin(torch.pi / BLOCK * x)
    waves = waves / waves.norm(dim=1, keepdim=True)
    return torch.einsum("ai,bj->abij", waves, waves).flatten(0, 1)[:, None]


class Restorer(nn.Module):
    """LR image ⇒ (restored LR image, history); no normalisation, so that any size is treated alike."""

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
                # PyTorch's own are too small for a network without normalisation to learn fast
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        with torch.no_grad():  # a new one leaves images as they are
            for parameter in self.out.parameters():
                parameter.zero_()

    def forward(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Restore LR images.

        Args:
            lr: [B, 1, h, w] in [-1, 1], sides multiples of ``spec.fold``, BLOCK or more.

        Returns:
            The restored images [B, 1, h, w] in about [-1, 1], and what is told of their history, [B, HISTORY]: the
            logits of every one of ``REDUCTIONS`` and of "another", and the logarithm of the standard deviation, in
            gray levels of 255, of what noise and compression changed.
        """
        detail = detail_of(lr)
        squares = F.pixel_unshuffle(torch.cat([lr, detail], dim=1), self.spec.fold)
        features = self.blocks(self.stem(squares))
        restored: Tensor = lr + F.pixel_shuffle(self.out(features), self.spec.fold).float() / GAIN
        return restored, self.history(detail)

    def history(self, detail: Tensor) -> Tensor:
        """What ``forward`` tells of the history, of ``detail_of`` LR images.

        How strong each frequency is tells how far a reduction let it through, and what noise and rounding added: the
        mean of its power over the image, and that of the power's logarithm, which a few edges do not govern.
        """
        power = F.conv2d(127.5 / GAIN * detail, self.cosines, stride=STRIDE).square() + MIN_POWER
        found = torch.cat([power.mean(dim=(2, 3)).log(), power.log().mean(dim=(2, 3))], dim=1)
        return self.head(found / 2).float()


def detail_of(lr: Tensor) -> Tensor:
    """LR images less their local mean, times GAIN: noise and edges, which are small against gray values."""
    (h, w), reach = lr.shape[2:], 2
    padded, count = F.pad(lr, [reach] * 4, mode="replicate"), 2 * reach + 1
    # sums are faster than pooling of one channel
    rows = reduce(add, [padded.narrow(2, k, h) for k in range(count)]) / count
    mean = reduce(add, [rows.narrow(3, k, w) for k in range(count)]) / count
    return GAIN * (lr - mean)


def estimates(history: Tensor, presentation: Tensor) -> Tensor:
    """A restorer's second output, and a ``Presentation``'s, as probabilities and a standard deviation: [B, ESTIMATES].

    The deviation is in [0, 1] of gray.
    """
    return torch.cat([history[:, :-1].softmax(dim=1), history[:, -1:].exp() / 255, presentation.softmax(dim=1)], dim=1)
