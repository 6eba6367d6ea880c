"""The restorer: a new one changes nothing, and what it tells is a distribution and a deviation."""

from __future__ import annotations

import pytest
import torch

from pipeline.networks.restorer import BLOCK, STRIDE, Restorer, cosines, estimates
from pipeline.presets import RestorerSpec
from pipeline.spec import ESTIMATES, HISTORY


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 48), (8, 14)])
@torch.no_grad()
def test_a_new_one_leaves_images_of_any_size_as_they_are(height: int, width: int) -> None:
    lr = torch.rand(3, 1, height, width) * 2 - 1
    restored, history = Restorer(RestorerSpec())(lr)
    torch.testing.assert_close(restored, lr)
    assert history.shape == (3, HISTORY)


@torch.no_grad()
def test_an_image_is_restored_alike_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    restorer = Restorer(RestorerSpec(width=8, blocks=1))
    restorer.out.weight.normal_()
    lr = torch.rand(3, 1, 16, 16)
    together, alone = restorer(lr), restorer(lr[1:2])
    torch.testing.assert_close(together[0][1:2], alone[0])
    torch.testing.assert_close(together[1][1:2], alone[1])
    assert not torch.allclose(together[0], lr)


def test_white_noise_is_as_strong_in_every_frequency() -> None:
    noise = 5 * torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    power = torch.nn.functional.conv2d(noise, cosines(), stride=STRIDE).square().mean(dim=(0, 2, 3))
    assert len(power) == BLOCK**2
    torch.testing.assert_close(power, torch.full_like(power, 25.0), rtol=0.1, atol=0)


def test_what_is_told_is_probabilities_and_a_deviation_of_gray() -> None:
    history = torch.tensor([[0.0] * (HISTORY - 1) + [0.0], [9.0] + [0.0] * (HISTORY - 2) + [2.0]])
    found = estimates(history, torch.tensor([[0.0] * 7 + [9.0]] * 2))
    assert found.shape == (2, ESTIMATES)
    likely, noise, presentation = found[:, : HISTORY - 1], found[:, HISTORY - 1 : HISTORY], found[:, HISTORY:]
    torch.testing.assert_close(likely.sum(dim=1), torch.ones(2))
    assert likely[1, 0] > 0.99
    torch.testing.assert_close(255 * noise[:, 0], torch.tensor([1.0, 7.389056]))
    torch.testing.assert_close(presentation.sum(dim=1), torch.ones(2))
    assert (presentation[:, -1] > 0.99).all()
