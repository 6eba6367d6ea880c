"""The specification: the paper's numbers, and nothing but the standard library."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from pipeline.models import models, onnx_models, plan_models, superres_model
from pipeline.presets import BEST, DEFAULT, PAPER, PRESETS, Band, Preset, VAESpec
from pipeline.spec import SCALE
from train.paper import AUGMENTATION, REPORTED, SPLIT

EACH = pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)


def test_paper_preset_has_the_papers_numbers() -> None:
    d = PAPER.diffusion
    assert (d.T, d.beta_start, d.beta_end, d.default_steps("ddpm")) == (300, 1e-4, 0.02, 300)
    assert (PAPER.data.original_size, PAPER.data.hr_size, PAPER.data.lr_size) == (1024, 256, 64)
    assert SPLIT == (0.7, 0.2, 0.1)
    assert (PAPER.vae.factor, PAPER.vae.channels, PAPER.vae.latent_channels) == (8, 3, 4)
    assert (PAPER.unet.in_channels, PAPER.unet.out_channels) == (8, 4)
    a = AUGMENTATION["paper"]
    assert (a.share, a.horizontal_flip, a.rotations) == (0.7, 0.5, (90, 180, 270))
    assert (a.random_resized_crop, a.cutout, a.cutout_side) == (0.8, 0.3, 0.2)
    assert {(r.dataset, r.method) for r in REPORTED} == {
        (dataset, method) for dataset in ("nih", "iu") for method in ("bicubic", "PyTorch", "TensorRT")
    }


@EACH
def test_sizes_agree_with_each_other(preset: Preset) -> None:
    assert preset.data.hr_size == SCALE * preset.data.lr_size
    assert preset.data.channels == preset.vae.channels
    latent, folded = preset.vae.latent_channels, preset.vae.channels * (preset.vae.factor // SCALE) ** 2
    assert preset.unet.in_channels == latent + (latent if preset.condition == "latent" else folded)
    assert preset.unet.out_channels == latent
    assert preset.lr_multiple * SCALE == preset.vae.factor * preset.unet.factor
    assert preset.data.lr_size % preset.lr_multiple == 0
    assert preset.condition == "latent" or "lr" not in preset.diffusion.starts


def test_the_papers_autoencoder_halves_between_its_levels() -> None:
    assert isinstance(PAPER.vae, VAESpec)
    assert PAPER.vae.factor == 2 ** (len(PAPER.vae.block_out_channels) - 1)


def test_best_is_the_default_and_takes_few_steps() -> None:
    assert DEFAULT is BEST
    assert BEST.diffusion.ddim_steps <= 4


def test_a_band_takes_the_scale_of_the_number_of_samples_below() -> None:
    band = Band(scales=((2, 3.0), (4, 2.0), (16, 1.5)))
    assert [band.scale(n) for n in (1, 2, 3, 4, 15, 16)] == [None, 3.0, 3.0, 2.0, 2.0, 1.5]


@EACH
def test_bands_have_a_scale_for_every_number_of_samples(preset: Preset) -> None:
    scales = [scale for n in range(2, 17) if (scale := preset.band.scale(n)) is not None]
    assert len(scales) == 15
    assert scales == sorted(scales, reverse=True), "more samples, less doubt about their mean"


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.diffusion.T = 10  # type: ignore[misc]


@EACH
def test_every_option_of_the_front_model_may_be_left_out(preset: Preset) -> None:
    image, *options = superres_model(preset).inputs
    assert not image.optional
    assert all(tensor.optional for tensor in options)


@EACH
def test_warmups_fit_their_inputs(preset: Preset) -> None:
    for model in models(preset):
        for tensor, dims in zip(model.inputs, model.warmup, strict=False):
            assert len(dims) == len(tensor.dims)
            assert all(wanted in (-1, given) for wanted, given in zip(tensor.dims, dims, strict=True))


def test_plans_have_the_networks_interfaces_and_names_of_their_own() -> None:
    plans, networks = plan_models(DEFAULT), onnx_models(DEFAULT)
    assert [p.name for p in plans] == ["unet_trt", "vae_encoder_trt", "vae_decoder_trt", "superres_trt", "restorer_trt"]
    assert [(p.inputs, p.outputs, p.warmup) for p in plans] == [(n.inputs, n.outputs, n.warmup) for n in networks]
    assert {p.backend for p in plans} == {"tensorrt"}


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("pipeline.spec", ["numpy", "torch"]),
        ("pipeline.method.sampler", ["torch", "cv2"]),
        ("pipeline.method.upscale", ["torch", "onnxruntime", "PIL", "pydicom"]),
        ("pipeline.serve", ["torch", "onnxruntime"]),
        ("pipeline.plan", ["torch", "client", "train"]),
        ("client", ["torch", "onnxruntime"]),
        ("client.upscale", ["torch", "onnxruntime"]),
    ],
)
def test_importing_does_not_drag_in(module: str, banned: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {banned} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
