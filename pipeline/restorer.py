"""The network before the others: any LR image ⇒ what the paper's protocol would have given, and its history.

Viewers and archives reduce images by other kernels, add noise and compress them. The generator behind it is spared
that: it sees what it was trained on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.blocks import Residual, conv3
from pipeline.spec import HISTORY, RestorerSpec

GAIN = 8.0
LEAST_VARIANCE = 1e-6
"""Of features: below that they are flat."""


class Restorer(nn.Module):
    """LR image ⇒ (restored LR image, history); no normalisation, so that any size is treated alike."""

    def __init__(self, spec: RestorerSpec) -> None:
        super().__init__()
        w, folded = spec.width, spec.fold**2
        self.spec = spec
        self.stem = conv3(2 * folded, w)
        self.blocks = nn.Sequential(*(Residual(w) for _ in range(spec.blocks)))
        self.out = conv3(w, folded)
        self.look = nn.Sequential(conv3(2 * folded, w), nn.SiLU(), conv3(w, w))
        self.head = nn.Sequential(nn.Linear(2 * w, w), nn.SiLU(), nn.Linear(w, HISTORY))
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
            lr: [B, 1, h, w] in [-1, 1], sides multiples of ``spec.fold``.

        Returns:
            The restored images [B, 1, h, w] in about [-1, 1], and what is told of their history, [B, HISTORY]: the
            logits of every one of ``REDUCTIONS`` and of "another", and the logarithm of the standard deviation, in
            gray levels of 255, of what noise and compression changed.
        """
        # noise and edges are small against gray values: brought to their size
        detail = GAIN * (lr - F.avg_pool2d(F.pad(lr, (2, 2, 2, 2), mode="replicate"), 5, stride=1))
        squares = F.pixel_unshuffle(torch.cat([lr, detail], dim=1), self.spec.fold)
        features = self.blocks(self.stem(squares))
        restored: Tensor = lr + F.pixel_shuffle(self.out(features), self.spec.fold).float() / GAIN
        # on its own: what tells noise from texture is what the blocks take away
        found = self.look(squares).float()
        moments = torch.cat([found.mean(dim=(2, 3)), (found.var(dim=(2, 3)) + LEAST_VARIANCE).log()], dim=1)
        return restored, self.head(moments).float()


def told(history: Tensor) -> Tensor:
    """A restorer's second output as probabilities and a standard deviation in [0, 1] of gray: [B, HISTORY]."""
    return torch.cat([history[:, :-1].softmax(dim=1), history[:, -1:].exp() / 255], dim=1)
