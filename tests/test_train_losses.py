"""The losses: what each is zero for, and which way it pushes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.method.images import downscale, upsample
from pipeline.method.options import Options
from pipeline.method.reduction import History, faithful_to, reduce
from pipeline.method.sampler import image_noise
from pipeline.networks.detail_vae import DetailVAE
from pipeline.networks.eager import Eager
from pipeline.networks.restorer import Restorer
from pipeline.networks.unet import UNet
from pipeline.networks.vae import Decoder, Encoder, make_vae
from pipeline.presets import BEST, PAPER, Preset, RestorerSpec
from train.losses import (
    AutoencoderLoss,
    DiffusionLoss,
    DoubtLoss,
    FewStepLoss,
    HistoryLoss,
    Perceptual,
    project,
    project_cubic,
)
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


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pairs() -> Tensor:
    return torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(1))


ALPHA_BAR = torch.tensor([0.9, 0.1])
TIMES = torch.tensor([0, 1])
WHERE = torch.zeros(2)


def test_the_true_noise_costs_nothing_and_errors_cost_their_square(pairs: Tensor, noise: Tensor) -> None:
    for error, expected in ((0.0, 0.0), (0.1, 0.01), (0.5, 0.25)):
        loss = DiffusionLoss(Oracle(noise, error), ALPHA_BAR, "eps")  # type: ignore[arg-type]
        assert loss(pairs, TIMES, noise)["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_v_is_learnt_where_the_preset_predicts_it(pairs: Tensor, noise: Tensor) -> None:
    a = ALPHA_BAR[TIMES][:, None, None, None]
    v = a.sqrt() * noise - (1 - a).sqrt() * pairs[:, :4]
    for error, expected in ((0.0, 0.0), (0.5, 0.25)):
        loss = DiffusionLoss(Oracle(v, error), ALPHA_BAR, "v")  # type: ignore[arg-type]
        assert loss(pairs, TIMES, noise)["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_projected_images_downscale_to_the_lr_image(rng: np.random.Generator) -> None:
    lr = rng.uniform(0.3, 0.7, (2, 1, 8, 12)).astype(np.float32)
    y = np.stack([upsample(image[0])[None] for image in lr])
    y += 0.02 * rng.standard_normal(y.shape, dtype=np.float32)
    found = project_cubic(torch.from_numpy(y), torch.from_numpy(lr)).numpy()
    for image, small, before in zip(found, lr, y, strict=True):
        np.testing.assert_allclose(downscale(image[0]), small[0], atol=1e-6)
        np.testing.assert_allclose(
            image[0], faithful_to(small[0], before[0].astype(np.float32), History("cubic")), atol=1e-5
        )


def test_projection_allows_what_the_degradation_clips() -> None:
    hr = np.zeros((8, 8), np.float32)
    hr[3, 1] = 1.0
    lr = downscale(hr).clip(0, 1)
    y, low = (2 * torch.from_numpy(image)[None, None] - 1 for image in (hr, lr))
    torch.testing.assert_close(project_cubic(y, low), y, atol=1e-6, rtol=0)


@pytest.mark.parametrize("preset", [PAPER, BEST], ids=lambda p: p.name)
def test_the_autoencoders_terms_add_up(preset: Preset) -> None:
    torch.manual_seed(0)
    vae = make_vae(preset.vae)
    x, noise = torch.rand(2, preset.data.channels, 64, 64) * 2 - 1, torch.randn(2, 2, 4, 8, 8)
    lr, chance = torch.rand(2, preset.data.channels, 16, 16) * 2 - 1, torch.rand(2, 2)
    terms = AutoencoderLoss(vae, Perceptual(0.3), kl_weight=0.01)(x, lr, noise, chance, WHERE)
    assert terms.keys() == {"l1", "lpips", "kl", "loss", "reconstruction"}
    torch.testing.assert_close(terms["loss"], terms["l1"] + 0.3 * terms["lpips"] + 0.01 * terms["kl"])
    assert terms["reconstruction"].shape == x.shape
    torch.testing.assert_close(terms["l1"], (terms["reconstruction"] - x).abs().mean())


def test_latents_are_spoilt_by_chance() -> None:
    loss = AutoencoderLoss(make_vae(BEST.vae), Perceptual(0.3), 0.0, latent_noise=0.5, latent_drop=0.2)
    latent, noise = torch.ones(3, 4, 8, 8), torch.full((3, 4, 8, 8), 2.0)
    spoilt = loss.corrupt(latent, noise, torch.tensor([[0.5, 0.9], [0.0, 0.2], [1.0, 0.19]]))
    assert [value.unique().tolist() for value in spoilt] == [[1.5], [1.0], [0.0]]


def test_a_faithful_autoencoder_is_judged_after_projection() -> None:
    torch.manual_seed(0)
    x, lr = torch.rand(1, 1, 64, 64), torch.rand(1, 1, 16, 16)
    loss = AutoencoderLoss(make_vae(BEST.vae), Perceptual(0.3), 0.0, faithful=True)
    y = loss(x, lr, torch.zeros(2, 1, 4, 8, 8), torch.ones(1, 2), WHERE)["reconstruction"][0, 0].numpy()
    np.testing.assert_allclose(downscale(y), lr[0, 0], atol=1e-5)


@pytest.mark.slow
def test_vgg_counts_where_it_has_a_weight() -> None:
    x, y = torch.rand(2, 5, 1, 160, 160) * 2 - 1
    perceptual, vgg = Perceptual(0.2, 0.1), LPIPS("vgg")
    torch.testing.assert_close(perceptual(y, x)["vgg"], vgg(y, x).mean())
    for where, (top, left) in (((0.0, 0.0), (0, 0)), ((0.5, 0.999), (16, 32))):
        square = np.s_[::4, :, top : top + 128, left : left + 128]
        found = perceptual(y, x, torch.tensor(where))["vgg"]
        torch.testing.assert_close(found, vgg(y[square], x[square]).mean())
    assert Perceptual(0.2)(y, x).keys() == {"lpips"}


class TestFewSteps:
    """The few-step loss."""

    def loss(self, diversity: float = 0.0, faithful_share: float = 0.0, **factors: float) -> FewStepLoss:
        torch.manual_seed(0)
        vae = DetailVAE(BEST.vae)  # type: ignore[arg-type]
        # a decoder that has learnt something: a new one hardly looks at the latent
        with torch.no_grad():
            vae.out.weight.mul_(30)
        return FewStepLoss(UNet(BEST.unet), vae, Perceptual(0.2), BEST, diversity, faithful_share, **factors)

    def arguments(self, noise: float = 0.3) -> tuple[Tensor, ...]:
        """Two pairs, one by the protocol, one by area, with so much noise, in gray levels."""
        torch.manual_seed(1)
        lr = torch.rand(2, 1, 16, 16)
        levels = torch.full((2,), noise)
        return torch.rand(2, 1, 64, 64), lr, lr.clone(), torch.tensor([0, 1]), levels, torch.randn(2, 2, 4, 8, 8)

    def test_draws_what_the_pipeline_draws(self) -> None:
        loss, (_, lr, *_) = self.loss(), self.arguments()
        networks = loss.networks
        system = Eager(Encoder(networks.vae), networks.unet, Decoder(networks.vae), BEST, torch.device("cpu"))
        expected = system.generator(Options.of(system.preset, steps=2))((lr[:, 0].numpy() + 1) / 2, [3, 4]).images
        noise = torch.from_numpy(image_noise([3, 4], (4, 8, 8))())
        with torch.no_grad():
            restored, _ = networks.vae.restorer(lr)
            found = networks.vae.image(networks.draw(restored, noise, 2, BEST), restored)
        np.testing.assert_allclose((found[:, 0].numpy() + 1) / 2, expected, atol=1e-4)

    def test_samples_that_differ_cost_less_where_diversity_is_wanted(self) -> None:
        little, much = (self.loss(diversity)(*self.arguments(), 2, 1.0, WHERE) for diversity in (0.1, 0.3))
        assert little["apart"] > 0
        torch.testing.assert_close(much["loss"], little["loss"] - 0.2 * little["apart"])

    def test_one_sample_is_drawn_where_no_difference_is_wanted(self) -> None:
        x, lr, *given, noise = self.arguments()
        one, again = (self.loss()(x, lr, *given, n, 1, 1.0, WHERE) for n in (noise, torch.stack([noise[0]] * 2)))
        assert one["apart"] == 0
        assert one["loss"] == again["loss"], "the second noise counts for nothing"

    @pytest.mark.parametrize(("noise", "factor"), [(0.3, "averaged"), (5.0, "changed")])
    def test_lpips_counts_by_an_images_history(self, noise: float, factor: str) -> None:
        """Of one image by the protocol and one by area."""
        plain, doubled, tripled = (self.loss(**{factor: n})(*self.arguments(noise), 1, 1.0, WHERE) for n in (1, 2, 3))
        assert doubled["lpips"] > plain["lpips"]
        torch.testing.assert_close(tripled["lpips"] - doubled["lpips"], doubled["lpips"] - plain["lpips"])
        other = self.loss(**{"changed" if factor == "averaged" else "averaged": 5.0})
        assert other(*self.arguments(noise), 1, 1.0, WHERE)["lpips"] == plain["lpips"]
        share = (doubled["lpips"] / plain["lpips"]).item() - 1
        assert (0.2 < share < 0.8) if factor == "averaged" else share == pytest.approx(1)

    def test_every_step_learns(self) -> None:
        loss = self.loss()
        loss(*self.arguments(), 4, 1.0, WHERE)["loss"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.networks.unet.parameters())

    def test_chance_decides_on_projection(self) -> None:
        loss, arguments = self.loss(faithful_share=0.5), self.arguments()
        projected, free = (loss(*arguments, 1, chance, WHERE)["l1"] for chance in (0.4, 0.6))
        assert projected != free

    def test_samples_of_noisy_images_are_not_projected(self) -> None:
        loss, arguments = self.loss(faithful_share=0.5), self.arguments(noise=5.0)
        projected, free = (loss(*arguments, 1, chance, WHERE)["l1"] for chance in (0.4, 0.6))
        assert projected == free

    def test_the_restorer_goes_on_learning_the_history(self) -> None:
        loss = self.loss()
        terms = loss(*self.arguments(), 1, 1.0, WHERE)
        assert {"restored", "reduction", "noise"} < terms.keys()
        terms["loss"].backward()
        assert all(p.grad is not None for p in loss.networks.vae.restorer.parameters())


def test_projection_is_onto_the_reduction_of_each_image_where_it_is_chosen() -> None:
    torch.manual_seed(0)
    y, lr = 0.2 * torch.randn(3, 1, 32, 48), 0.2 * torch.randn(3, 1, 8, 12)
    found = project(y, lr, torch.tensor([0, 1, 6]), torch.tensor([True, True, False]))
    for image, low, name in zip(found, lr, ("cubic", "area"), strict=False):
        np.testing.assert_allclose(reduce(image[0].numpy(), name), low[0], atol=1e-5)  # type: ignore[arg-type]
    torch.testing.assert_close(found[2], y[2])


def test_the_restorer_learns_to_name_reductions_and_noise() -> None:
    torch.manual_seed(0)
    loss = HistoryLoss(Restorer(RestorerSpec(width=8, blocks=1)))
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-2)
    smooth, rough = torch.zeros(2, 1, 16, 16), 0.2 * torch.randn(2, 1, 16, 16)
    reduction, noise = torch.tensor([1, 1, 4, 4]), torch.tensor([0.3, 0.3, 9, 9])
    given = torch.cat([smooth, rough]), torch.zeros(4, 1, 16, 16), reduction, noise
    first = loss(*given)
    torch.testing.assert_close(loss.restorer(given[0])[0], given[0], msg="a new one leaves images as they are")
    for _ in range(60):
        optimiser.zero_grad()
        terms = loss(*given)
        terms["loss"].backward()
        optimiser.step()
    assert all(terms[name] < first[name] / 2 for name in ("restored", "reduction", "noise"))


@pytest.mark.slow
def test_doubt_learns_what_nine_of_ten_errors_are_within_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    vae = DetailVAE(BEST.vae)  # type: ignore[arg-type]
    loss = DoubtLoss(UNet(BEST.unet), vae, BEST)
    optimiser = torch.optim.Adam(loss.doubt.parameters(), lr=2e-2)
    lr, noise = torch.zeros(4, 1, 16, 16), torch.randn(4, 4, 8, 8)
    with torch.no_grad():
        y, _ = loss.draw(lr, noise)
    hr = y + 0.1 * torch.randn(4, 1, 64, 64)
    for _ in range(60):
        optimiser.zero_grad()
        loss(hr, lr, torch.full((4,), 6), torch.ones(4), noise)["loss"].backward()
        optimiser.step()
    _, width = loss.draw(lr, noise)
    assert ((hr - y).abs() / 2 <= width).float().mean() == pytest.approx(0.9, abs=0.03)
    assert all(p.grad is None for p in loss.frozen.parameters())
