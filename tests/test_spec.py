"""The specification: the paper's numbers, and nothing but the standard library."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from pipeline.spec import PAPER, SCALE, models, superres_model


def test_paper_preset_has_the_papers_numbers() -> None:
    d = PAPER.diffusion
    assert (d.T, d.beta_start, d.beta_end, d.default_steps("ddpm")) == (300, 1e-4, 0.02, 300)
    assert (PAPER.data.original_size, PAPER.data.hr_size, PAPER.data.lr_size) == (1024, 256, 64)
    assert PAPER.data.split == (0.7, 0.2, 0.1)
    assert (PAPER.vae.factor, PAPER.vae.channels, PAPER.vae.latent_channels) == (8, 3, 4)
    assert (PAPER.unet.in_channels, PAPER.unet.out_channels, PAPER.unet.parameters) == (8, 4, 813_220)
    a = PAPER.augmentation
    assert (a.share, a.horizontal_flip, a.rotations) == (0.7, 0.5, (90, 180, 270))
    assert (a.random_resized_crop, a.cutout, a.cutout_side) == (0.8, 0.3, 0.2)
    assert {(r.dataset, r.method) for r in PAPER.reported} == {
        (dataset, method) for dataset in ("nih", "iu") for method in ("bicubic", "PyTorch", "TensorRT")
    }


def test_sizes_agree_with_each_other() -> None:
    assert PAPER.data.hr_size == SCALE * PAPER.data.lr_size
    assert PAPER.vae.factor == 2 ** (len(PAPER.vae.block_out_channels) - 1)
    assert PAPER.unet.in_channels == 2 * PAPER.vae.latent_channels
    assert PAPER.lr_multiple * SCALE == PAPER.vae.factor * PAPER.unet.factor
    assert PAPER.data.lr_size % PAPER.lr_multiple == 0


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.diffusion.T = 10  # type: ignore[misc]


def test_every_option_of_the_front_model_may_be_left_out() -> None:
    image, *options = superres_model(PAPER).inputs
    assert not image.optional
    assert all(tensor.optional for tensor in options)


def test_warmups_fit_their_inputs() -> None:
    for model in models(PAPER):
        for tensor, dims in zip(model.inputs, model.warmup, strict=False):
            assert len(dims) == len(tensor.dims)
            assert all(wanted in (-1, given) for wanted, given in zip(tensor.dims, dims, strict=True))


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("pipeline.spec", ["numpy", "torch"]),
        ("pipeline.sampler", ["torch", "cv2"]),
        ("pipeline.superres", ["torch", "onnxruntime", "PIL", "pydicom"]),
        ("pipeline.serve", ["torch", "onnxruntime"]),
        ("client", ["torch", "onnxruntime"]),
        ("client.upscale", ["torch", "onnxruntime"]),
    ],
)
def test_importing_does_not_drag_in(module: str, banned: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {banned} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
