"""LPIPS is a distance between images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.lpips import LPIPS


@pytest.fixture(scope="module", params=["alex", "vgg"])
def lpips(request: pytest.FixtureRequest) -> LPIPS:
    return LPIPS(request.param)


def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.slow
def test_is_a_distance(lpips: LPIPS) -> None:
    x = images()
    y = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    assert lpips(x, x).abs().max() == 0
    assert lpips(x, y).shape == (2,)
    assert (lpips(x, y) > 0.1).all()
    torch.testing.assert_close(lpips(x, y), lpips(y, x))


def test_equals_the_package_lpips(lpips: LPIPS) -> None:
    """Values of lpips 0.1.4 (version 0.1, torchvision's backbones): two images, each against its blurred self."""
    expected = {"alex": [0.8298400640, 0.7914003134], "vgg": [0.5408303738, 0.5719737411]}
    x = torch.from_numpy((2 * np.random.default_rng(0).random((2, 3, 64, 64)) - 1).astype(np.float32))
    blurred = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    assert lpips(x, blurred).tolist() == pytest.approx(expected[lpips.net], abs=1e-5)


def test_more_blur_is_further_away(lpips: LPIPS) -> None:
    x = images()
    blurred = [torch.nn.functional.avg_pool2d(x, k, 1, k // 2, count_include_pad=False) for k in (3, 9)]
    assert (lpips(x, blurred[0]) < lpips(x, blurred[1])).all()


def test_has_gradients_but_no_parameters(lpips: LPIPS) -> None:
    x = images().requires_grad_()
    lpips(x, torch.zeros_like(x)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert list(lpips.parameters()) == []
