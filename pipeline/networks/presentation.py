"""Classifier of an image's presentation: upright or rotated, normal or inverted."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.networks.blocks import conv3
from pipeline.spec import PRESENTATIONS

SIDE = 32
"""Side, in pixels, to which images of any size and shape are resized."""
MIN_CONTRAST = 0.05
"""Constant added to the standard deviation in the normalisation of images."""


class Presentation(nn.Module):
    """LR image ⇒ logits of ``PRESENTATIONS``."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.look = nn.Sequential(
            conv3(1, width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
        )
        self.out = nn.Linear(2 * width * (SIDE // 8) ** 2, len(PRESENTATIONS))

    def forward(self, lr: Tensor) -> Tensor:
        """Classify LR images [B, 1, h, w] in [-1, 1]; return logits [B, len(PRESENTATIONS)], float32."""
        seen = F.interpolate(lr, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        centred = seen - seen.mean(dim=(2, 3), keepdim=True)
        contrast = centred.square().mean(dim=(2, 3), keepdim=True).sqrt()
        logits: Tensor = self.out(self.look(centred / (contrast + MIN_CONTRAST))).float()
        return logits
