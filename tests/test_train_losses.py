"""The losses: what each is zero for, and which way it pushes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.spec import PAPER
from pipeline.vae import Decoder, make_vae
from train.losses import AdversaryLoss, AutoencoderLoss, DiffusionLoss, Discriminator, EpsLoss, eps_lpips
from train.lpips import LPIPS


class Oracle(nn.Module):
    """Predicts the ε it is given, plus an error."""

    def __init__(self, noise: Tensor, error: float = 0.0) -> None:
        super().__init__()
        self.noise, self.error = noise, nn.Parameter(torch.tensor(error))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert x.shape == (2, 8, 32, 32)
        assert t.shape == (2,)
        return self.noise + self.error


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    return LPIPS("alex")


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pairs() -> Tensor:
    return torch.randn(2, 2, 4, 32, 32, generator=torch.Generator().manual_seed(1))


ALPHA_BAR = torch.tensor([0.9, 0.1])
TIMES = torch.tensor([0, 1])


@pytest.mark.parametrize("kind", ["eps-mse", "eps-lpips"])
def test_the_true_noise_costs_nothing_and_errors_cost_more(
    kind: EpsLoss, lpips: LPIPS, pairs: Tensor, noise: Tensor
) -> None:
    losses = [
        DiffusionLoss(Oracle(noise, error), ALPHA_BAR, kind, lpips)(pairs, TIMES, noise)["loss"].item()  # type: ignore[arg-type]
        for error in (0.0, 0.1, 0.5)
    ]
    assert losses[0] == 0
    assert losses[0] < losses[1] < losses[2]
    if kind == "eps-mse":
        assert losses[1:] == pytest.approx([0.01, 0.25], rel=1e-4)


def test_eps_lpips_takes_each_channel_as_a_gray_image(lpips: LPIPS, noise: Tensor) -> None:
    other = noise + torch.randn(noise.shape, generator=torch.Generator().manual_seed(2))
    channels = [lpips(*(e[i, c].expand(1, 3, -1, -1) for e in (other, noise))) for i in range(2) for c in range(4)]
    torch.testing.assert_close(eps_lpips(lpips, other, noise), torch.cat(channels).mean())


def test_eps_image_compares_what_the_estimate_decodes_to(lpips: LPIPS, pairs: Tensor, noise: Tensor) -> None:
    """With the true ε the estimate ẑ_0 is z_0, whatever t: only the decoder's own crop is left to compare with."""
    torch.manual_seed(0)
    decoder = Decoder(make_vae(PAPER.vae).requires_grad_(False))
    where = torch.tensor([[3, 5]])
    with torch.no_grad():
        hr = decoder(pairs[:1, 0, :, 3:11, 5:13])
    terms = {}
    for error in (0.0, 0.5):
        loss = DiffusionLoss(Oracle(noise, error), ALPHA_BAR, "eps-image", lpips, decoder, image_weight=0.1)  # type: ignore[arg-type]
        terms[error] = loss(pairs, TIMES, noise, (hr, where))
    assert terms[0.0]["image"].item() == pytest.approx(0, abs=1e-4)
    assert terms[0.5]["image"].item() > 0.01
    torch.testing.assert_close(terms[0.5]["loss"], terms[0.5]["mse"] + 0.1 * terms[0.5]["image"])
    terms[0.5]["image"].backward()
    oracle = loss.unet
    assert oracle.error.grad > 0, "a smaller error decodes to something nearer"  # type: ignore[operator]


def test_the_autoencoders_terms_add_up(lpips: LPIPS) -> None:
    torch.manual_seed(0)
    vae = make_vae(PAPER.vae)
    x, noise = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 4, 8, 8)
    loss = AutoencoderLoss(vae, lpips, lpips_weight=0.3, kl_weight=0.01, adversarial_weight=0.05)
    terms = loss(x, noise, Discriminator(3))
    assert terms.keys() == {"l1", "lpips", "kl", "adversarial", "loss", "reconstruction"}
    torch.testing.assert_close(
        terms["loss"], terms["l1"] + 0.3 * terms["lpips"] + 0.01 * terms["kl"] + 0.05 * terms["adversarial"]
    )
    assert terms["reconstruction"].shape == x.shape
    torch.testing.assert_close(terms["l1"], (terms["reconstruction"] - x).abs().mean())
    assert "adversarial" not in loss(x, noise)


def test_the_discriminator_learns_to_tell_noise_from_gray() -> None:
    torch.manual_seed(0)
    loss = AdversaryLoss(Discriminator(3))
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-3)
    real, fake = torch.randn(4, 3, 64, 64), torch.zeros(4, 3, 64, 64)
    first = loss(real, fake)["loss"].item()
    for _ in range(20):
        optimiser.zero_grad()
        value = loss(real, fake)["loss"]
        value.backward()
        optimiser.step()
    assert first == pytest.approx(2, abs=0.3), "hinge: each side costs 1 before it is learnt"
    assert value.item() < 0.5
    assert (loss.discriminator(real).mean() > loss.discriminator(fake).mean()).item()
