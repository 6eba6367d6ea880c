"""The U-Net: the paper's size, any image size, every part in use."""

from __future__ import annotations

import pytest
import torch

from pipeline.networks.unet import UNet, timestep_embedding
from pipeline.presets import PAPER

SPEC = PAPER.unet


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(SPEC).eval()


def test_has_exactly_the_papers_parameter_count(unet: UNet) -> None:
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == 813_220


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (40, 56), (64, 16)])
def test_takes_any_size_divisible_by_its_factor(unet: UNet, height: int, width: int) -> None:
    assert SPEC.factor == 8
    eps = unet(torch.randn(2, 8, height, width), torch.tensor([0.0, 299.0]))
    assert eps.shape == (2, 4, height, width)


def test_an_image_does_not_depend_on_its_batch(unet: UNet) -> None:
    x, t = torch.randn(3, 8, 32, 32), torch.tensor([0.0, 10.0, 299.0])
    with torch.inference_mode():
        together = unet(x, t)
        for i in range(3):
            torch.testing.assert_close(unet(x[i : i + 1], t[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


def test_timesteps_may_have_an_axis_of_their_own(unet: UNet) -> None:
    x, t = torch.randn(2, 8, 16, 16), torch.tensor([3.0, 200.0])
    torch.testing.assert_close(unet(x, t), unet(x, t[:, None]))


def test_every_input_and_parameter_matters(unet: UNet) -> None:
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    unet(x, torch.tensor([5.0, 250.0])).square().sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().amax(dim=(0, 2, 3)) > 0).all()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    unet.zero_grad()


def test_time_changes_the_output(unet: UNet) -> None:
    x = torch.randn(1, 8, 16, 16)
    assert not torch.allclose(unet(x, torch.tensor([0.0])), unet(x, torch.tensor([299.0])))


def test_timestep_embedding_is_sinusoidal() -> None:
    embedding = timestep_embedding(torch.tensor([0.0, 7.0]), 32)
    assert embedding.shape == (2, 32)
    torch.testing.assert_close(embedding[0], torch.cat([torch.zeros(16), torch.ones(16)]))
    torch.testing.assert_close(embedding[1, 0], torch.tensor(7.0).sin())
    torch.testing.assert_close(embedding[:, :16].square() + embedding[:, 16:].square(), torch.ones(2, 16))
